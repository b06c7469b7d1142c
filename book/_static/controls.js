// Settings that a reader of a live piece can choose: menus, whole numbers, sliders. All of them are in the page's address.
"use strict";

const Controls = (() => {
  const { make } = Drawing;

  // A slider goes from 0 to 1000; on a scale of its own where a setting has log: true.
  const STEPS = 1000;
  const onScale = ({ low, high, log }, value) =>
    Math.round(
      STEPS * (log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low)),
    );
  const ofScale = ({ low, high, log }, place) => {
    const share = place / STEPS;
    return +(log ? low * (high / low) ** share : low + share * (high - low)).toPrecision(3);
  };

  /** What a text says of a setting; undefined where that makes no sense. */
  function understood({ among, whole, low, high }, text) {
    if (among) return among.includes(text) ? text : undefined;
    const number = /^-?\d*[.]?\d+(e-?\d+)?$/.test(text) ? +text : NaN;
    return number >= low && number <= high && (!whole || Number.isInteger(number))
      ? number
      : undefined;
  }

  /** What the address asks for; others are names that a piece reads by itself. */
  function read(specs, others = []) {
    const state = Object.fromEntries(
      Object.entries(specs).map(([name, { start }]) => [name, start]),
    );
    const wrong = [];
    for (const [name, text] of new URLSearchParams(location.search)) {
      const value = specs[name] && understood(specs[name], text);
      if (value !== undefined) state[name] = value;
      else if (![...others, "highlight"].includes(name)) wrong.push(`${name}=${text}`);
    }
    return { state, wrong };
  }

  /** Numbers in a text; NaN for what is none, an empty place among them. */
  const numbers = (text, between) =>
    text.split(between).map((one) => (one.trim() === "" ? NaN : Number(one)));

  function write(values) {
    const query = new URLSearchParams(values);
    history.replaceState(null, "", `?${query}${location.hash}`);
  }

  const ignored = (wrong) =>
    wrong.length ? `Not understood in the address, and ignored: ${wrong.join(", ")}.` : "";

  /** A label with its control; changed(value), or refused(words) where a number cannot be. before stands in the label. */
  function control(spec, value, changed, refused = () => {}, before = `${spec.words} `) {
    const { words, among, whole, low, high } = spec;
    if (among) {
      const options = among.map((one) => new Option(one, one, false, one === value));
      const menu = make(
        "select",
        { "aria-label": words, onchange: () => changed(menu.value) },
        ...options,
      );
      return make("label", {}, before, menu);
    }
    if (whole) {
      const take = () => {
        const number = understood(spec, field.value);
        if (number !== undefined) return changed(number);
        refused(`${words} must be a whole number from ${low} to ${high}.`);
      };
      const field = make("input", {
        type: "number",
        min: low,
        max: high,
        value,
        "aria-label": words,
        onchange: take,
      });
      return make("label", {}, before, field);
    }
    const readout = make("output", {}, String(value));
    const slide = () => {
      const chosen = ofScale(spec, slider.value);
      readout.textContent = chosen;
      slider.setAttribute("aria-valuetext", chosen);
      changed(chosen);
    };
    const at = {
      min: 0,
      max: STEPS,
      step: 10,
      value: onScale(spec, value),
      "aria-valuetext": value,
    };
    const slider = make("input", { type: "range", ...at, "aria-label": words, oninput: slide });
    return make("label", { class: "live-slider" }, before, slider, readout);
  }

  return { read, numbers, write, ignored, control };
})();
