// Ten clients that train on the page: a reader deals the digits, chooses a norm and a method, and says when to average.
// federation.js is the engine, host.js the way to it.
"use strict";

const BATCH = 16;
const SETTINGS = { FedProx: { mu: 0.1 }, FedNAR: { radius: 1, lambda: 0.01 } };

function live(root) {
  const { make, curves, dots, bars: columns } = Drawing;
  const { CLIENTS, PARAMETERS, SPLITS } = Choices;
  const train = Choices.unpacked(DIGITS.train);
  const test = Choices.unpacked(DIGITS.test);
  const byClass = Choices.of(train.y);
  const { state, wrong } = Choices.read(byClass);
  const ask = connected();
  let [curve, earlier, last, playing, busy] = [[], [], null, false, false];

  // ---- what is on the page

  const said = make("p", { role: "status", "aria-live": "polite", class: "live-said" });
  const field = make("div", { class: "live-field" });
  const table = make("tbody");
  const chart = make("div", { class: "live-chart" });
  const bars = make("div", { class: "live-chart" });
  const button = (words, action, more = {}) =>
    make("button", { type: "button", onclick: action, ...more }, words);
  const group = (words, ...children) =>
    make("div", { class: "live-row", role: "group", "aria-label": words }, ...children);
  const splits = group(
    "who holds which digits",
    ...Object.entries(SPLITS).map(([kind, words]) =>
      button(words, () => deal(kind, Choices.dealt(byClass, kind)), { "data-kind": kind }),
    ),
  );
  const play = button("Play", () => (playing ? (pause(), tell()) : start()));

  function control(name) {
    const { words, among, low, high } = PARAMETERS[name];
    const changed = ({ target }) => {
      if (!target.checkValidity() || target.value === "")
        return say(`${words} must be a whole number from ${low} to ${high}.`);
      state[name] = among ? target.value : +target.value;
      begin();
    };
    const input = among
      ? make(
          "select",
          { onchange: changed },
          ...among.map((one) => new Option(one, one, false, one === state[name])),
        )
      : make("input", {
          type: "number",
          min: low,
          max: high,
          value: state[name],
          required: "",
          onchange: changed,
        });
    return make("label", {}, `${words} `, input);
  }

  function cell(k, c) {
    const there = state.held[k][c];
    const changed = ({ target }) => {
      const free =
        byClass[c].length - state.held.reduce((a, row, i) => a + (i === k ? 0 : row[c]), 0);
      const number = Math.max(0, Math.min(free, Math.floor(+target.value || 0)));
      const wrong = number !== +target.value;
      target.value = state.held[k][c] = number;
      state.split = "own";
      drawField();
      begin(wrong ? `Of class ${c}, ${free} images are free for client ${k + 1}.` : "");
    };
    const words = `images of class ${c} that client ${k + 1} holds`;
    return make(
      "td",
      {},
      make("input", {
        type: "number",
        min: 0,
        value: there,
        "aria-label": words,
        onchange: changed,
      }),
    );
  }

  function drawField() {
    field.innerHTML = dots(
      "clients (rows) and their digits",
      "A dot for each class that a client holds; the table below has the same as numbers",
      state.held,
      (k, c) => `client ${k + 1}: ${state.held[k][c]} images of class ${c}`,
    );
    for (const one of splits.children)
      one.setAttribute("aria-pressed", one.dataset.kind === state.split);
  }

  function drawResults() {
    const percent = (100 * last.accuracy).toFixed(1);
    chart.innerHTML = curves(
      "test accuracy of the server (%)",
      `Test accuracy after ${last.rounds} rounds: ${percent} per cent. Grey: the run before.`,
      [
        { points: earlier, kind: "live-before" },
        { points: curve, kind: "live-now" },
      ],
    );
    const words = last.before.map(([k, share]) => `client ${k + 1} ${(100 * share).toFixed(0)}`);
    bars.innerHTML = columns(
      "each client before the merge (%)",
      `Test accuracy before the merge, in per cent: ${words.join(", ") || "no step taken yet"}; merged ${percent}.`,
      state.held.map((_, k) => k + 1),
      last.before,
      last.accuracy,
    );
  }

  const say = (words) => (said.textContent = words);

  function tell() {
    const steps = last.before[0]?.[2] ?? 0;
    if (!last.fine)
      return say(
        `Not finite any more in round ${last.rounds}: the server keeps its weights. Try a smaller learning rate.`,
      );
    const waiting = steps && last.waiting ? ` ${steps} local steps taken, not merged yet.` : "";
    say(
      `Round ${last.rounds}: the merged network is right on ${(100 * last.accuracy).toFixed(1)} % of the test images.${waiting}`,
    );
  }

  // ---- what happens

  async function send(what, more = {}) {
    if (busy) return false;
    if (what !== "make" && !state.held.flat().some(Boolean)) {
      say("Nobody holds a digit: deal some first.");
      return false;
    }
    busy = true;
    last = { ...(await ask({ what, ...more })), waiting: what === "step" };
    busy = false;
    if (what !== "step")
      curve = [...curve.filter(([t]) => t < last.rounds), [last.rounds, last.accuracy]];
    drawResults();
    if (!playing || !last.fine || last.rounds % 10 === 0) tell();
    return last.fine;
  }

  async function begin(words = "") {
    pause();
    while (busy) await new Promise((done) => setTimeout(done, 10));
    if (curve.length > 1) earlier = curve;
    curve = [];
    const { norm, method, lr, steps, cohort, seed, held } = state;
    Choices.write(state);
    await send("make", {
      net: { sizes: [64, 64, 32, 10], norm, groups: 8 }, ...train, test, parts: Choices.parts(byClass, held, seed), method, lr: +lr, steps, cohort,
      seed, batch: BATCH, settings: SETTINGS[method] ?? {},
    }); // prettier-ignore
    const out = held.flatMap((row, k) => (row.some(Boolean) ? [] : [k + 1]));
    if (words) say(words);
    else if (out.length) say(`Without a digit, and so sitting out: client ${out.join(", ")}.`);
  }

  function deal(kind, rows, words = "") {
    Object.assign(state, { split: kind, held: rows });
    drawField();
    table.replaceChildren(
      ...state.held.map((row, k) =>
        make(
          "tr",
          {},
          make("th", { scope: "row" }, String(k + 1)),
          ...row.map((_, c) => cell(k, c)),
        ),
      ),
    );
    return begin(words);
  }

  async function start() {
    playing = true;
    play.textContent = "Pause";
    while (playing && (await send("play")) && last.rounds < 1000)
      await new Promise((done) => setTimeout(done));
    if (playing) pause();
  }

  function pause() {
    playing = false;
    play.textContent = "Play";
  }

  // A dot that is dragged takes all images of its class along, to the client where it is dropped.
  field.addEventListener("pointerdown", (event) => {
    const { k, c } = event.target.dataset;
    if (k === undefined) return;
    event.preventDefault();
    const box = field.firstChild.getBoundingClientRect();
    const heightAt = ({ clientY }) => ((clientY - box.top) / box.height) * 304;
    const moved = (move) => event.target.setAttribute("cy", heightAt(move));
    const dropped = (up) => {
      document.removeEventListener("pointermove", moved);
      const to = Math.max(0, Math.min(CLIENTS - 1, Math.round((heightAt(up) - 36) / 26)));
      if (to !== +k)
        [state.held[to][c], state.held[k][c]] = [state.held[to][c] + state.held[k][c], 0];
      deal(to === +k ? state.split : "own", state.held);
    };
    document.addEventListener("pointermove", moved);
    document.addEventListener("pointerup", dropped, { once: true });
  });

  const ACTIONS = {
    Step: () => send("step"),
    "Merge now": () => send("merge"),
    Round: () => send("round"),
    "Start again": () => begin(),
  };
  const classes = [...Array(10)].map((_, c) => make("th", { scope: "col" }, String(c)));
  const head = make("tr", {}, make("th", { scope: "col" }, "client"), ...classes);
  const numbers = make("table", {}, make("thead", {}, head), table);
  const around = { class: "live-scroll", tabindex: 0, role: "region" };
  root.replaceChildren(
    splits,
    make("div", { class: "live-parts" }, field, make("div", {}, chart, bars)),
    group("settings", ...Object.keys(PARAMETERS).map(control)),
    group("training", ...Object.entries(ACTIONS).map(([words, act]) => button(words, act)), play),
    said,
    make(
      "details",
      {},
      make("summary", {}, "Who holds what, as numbers"),
      make("div", { ...around, "aria-label": "images of each class, by client" }, numbers),
    ),
  );
  const ignored = `Not understood in the address, and ignored: ${wrong.join(", ")}.`;
  deal(state.split, state.held, wrong.length ? ignored : "");
}

for (const root of document.querySelectorAll(".live")) live(root);
