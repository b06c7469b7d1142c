// What a reader of the ten clients can choose: who holds which digits, and the settings.
"use strict";

const Choices = (() => {
  const CLIENTS = 10;
  const NORMS = ["none", "layer", "feature", "batch", "ln-g"];
  const RATES = ["0.003", "0.01", "0.03", "0.1", "0.3", "1"];
  const METHODS = Object.keys(Federation.METHODS);
  const PARAMETERS = {
    norm: { words: "norm", among: NORMS, start: "none" },
    method: { words: "method", among: METHODS, start: "FedAvg" },
    lr: { words: "learning rate", among: RATES, start: "0.1" },
    steps: { words: "local steps", whole: true, low: 1, high: 20, start: 5 },
    cohort: { words: "clients per round", whole: true, low: 1, high: CLIENTS, start: CLIENTS },
    seed: { words: "seed", whole: true, low: 0, high: 999, start: 1 },
  };
  // What a sweep over a setting tries.
  const SWEPT = {
    norm: NORMS,
    method: METHODS,
    lr: RATES,
    steps: [1, 2, 5, 10, 20],
    cohort: [1, 2, 3, 5, 10],
    seed: [1, 2, 3, 4, 5, 6],
  };
  const SPLITS = { shuffled: "shuffled", two: "two classes each", one: "one class each" };

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
    const rows = text.split("_").map((row) => Controls.numbers(row, "."));
    const whole = (row) => row.length === 10 && row.every((n) => Number.isInteger(n) && n >= 0);
    const asked = (c) => rows.reduce((a, row) => a + row[c], 0);
    const sound = rows.length === CLIENTS && rows.every(whole);
    return sound && byClass.every((images, c) => asked(c) <= images.length) ? rows : null;
  }

  function write({ split, held, ...settings }) {
    const table = split === "own" ? { held: held.map((row) => row.join(".")).join("_") } : {};
    Controls.write({ ...settings, split, ...table });
  }

  /** What the address asks for, and what of it makes no sense. start is what differs from the usual. */
  function read(byClass, { split: usual = "one", ...start }) {
    const query = new URLSearchParams(location.search);
    const specs = Object.entries(PARAMETERS).map(([name, spec]) => [
      name,
      { ...spec, start: start[name] ?? spec.start },
    ]);
    const { state, wrong } = Controls.read(Object.fromEntries(specs), ["split", "held"]);
    const [split, text] = [query.get("split"), query.get("held")];
    const table = text === null ? null : own(byClass, text);
    const named = split in SPLITS ? split : usual;
    Object.assign(
      state,
      table ? { split: "own", held: table } : { split: named, held: dealt(byClass, named) },
    );
    if (text !== null && !table) wrong.push(`held=${text}`);
    if (split !== null && !(split in SPLITS) && !(split === "own" && table))
      wrong.push(`split=${split}`);
    return { state, wrong };
  }

  return { CLIENTS, PARAMETERS, SWEPT, SPLITS, unpacked, of, dealt, parts, write, read };
})();
