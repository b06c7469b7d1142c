// What a reader of a live piece can choose: who holds which digits, and the settings; all of it is in the page's address.
"use strict";

const Choices = (() => {
  const CLIENTS = 10;
  const PARAMETERS = {
    norm: { words: "norm", among: ["none", "layer", "feature", "batch", "ln-g"], start: "none" },
    method: { words: "method", among: Object.keys(Federation.METHODS), start: "FedAvg" },
    lr: {
      words: "learning rate",
      among: ["0.003", "0.01", "0.03", "0.1", "0.3", "1"],
      start: "0.1",
    },
    steps: { words: "local steps", low: 1, high: 20, start: 5 },
    cohort: { words: "clients per round", low: 1, high: CLIENTS, start: CLIENTS },
    seed: { words: "seed", low: 0, high: 999, start: 1 },
  };
  const SPLITS = {
    shuffled: "shuffled",
    two: "two classes each",
    one: "one class each",
  };

  /** The digits, shades from 0 to 1. */
  function unpacked({ x, y }) {
    const read = (text) => Float64Array.from(text, (c) => (c.charCodeAt(0) - 97) / 16);
    return { x: read(x), y: Array.from(y, Number), d: 64 };
  }

  const of = (labels) =>
    Array.from({ length: 10 }, (_, c) => labels.flatMap((label, i) => (label === c ? [i] : [])));

  /** held[k][c], how many images of class c client k holds, by the name of a split. */
  const dealt = (byClass, kind) =>
    Array.from({ length: CLIENTS }, (_, k) =>
      byClass.map((images, c) => {
        if (kind === "one") return k === c ? images.length : 0;
        if (kind === "two") return [k, (k + 1) % 10].includes(c) ? images.length >> 1 : 0;
        return Math.floor(images.length / CLIENTS);
      }),
    );

  /** Which images those are: each client's positions. */
  function parts(byClass, held, seed) {
    const random = Federation.generator(seed + 1000);
    const left = byClass.map((images) => Federation.shuffled(images, random));
    return held.map((row) => row.flatMap((number, c) => left[c].splice(0, number)));
  }

  /** held, as it is written in an address; null where there are not so many images, or it is no table. */
  function own(byClass, text) {
    const rows = text.split("_").map((row) => row.split(".").map(Number));
    const whole = (row) => row.length === 10 && row.every((n) => Number.isInteger(n) && n >= 0);
    const asked = (c) => rows.reduce((a, row) => a + row[c], 0);
    const sound = rows.length === CLIENTS && rows.every(whole);
    return sound && byClass.every((images, c) => asked(c) <= images.length) ? rows : null;
  }

  function write({ split, held, ...settings }) {
    const query = new URLSearchParams({ ...settings, split });
    if (split === "own") query.set("held", held.map((row) => row.join(".")).join("_"));
    history.replaceState(null, "", `?${query}${location.hash}`);
  }

  /** What the address asks for, and what of it makes no sense. */
  function read(byClass) {
    const defaults = Object.entries(PARAMETERS).map(([name, { start }]) => [name, start]);
    const state = { ...Object.fromEntries(defaults), split: "one", held: dealt(byClass, "one") };
    const wrong = [];
    for (const [name, value] of new URLSearchParams(location.search)) {
      const { among, low, high } = PARAMETERS[name] ?? {};
      const number = /^\d+$/.test(value) && +value >= low && +value <= high;
      if (among?.includes(value)) state[name] = value;
      else if (number) state[name] = +value;
      else if (name === "split" && value in SPLITS)
        Object.assign(state, { split: value, held: dealt(byClass, value) });
      else if (name === "held" && own(byClass, value))
        Object.assign(state, { split: "own", held: own(byClass, value) });
      else if (name !== "highlight" && `${name}=${value}` !== "split=own")
        wrong.push(`${name}=${value}`);
    }
    const asked = new URLSearchParams(location.search).get("split");
    if (asked === "own" && state.split !== "own") wrong.push("split=own"); // without a table that says how
    return { state, wrong };
  }

  return { CLIENTS, PARAMETERS, SPLITS, unpacked, of, dealt, parts, write, read };
})();
