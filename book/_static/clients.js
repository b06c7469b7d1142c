// Ten clients that train on the page: a reader deals the digits, chooses a norm and a method, and says when to average.
// federation.js is the engine, host.js the way to it.
"use strict";

Pieces.clients = (root, given) => {
  const BATCH = 16;
  const METHOD = { FedProx: { mu: 0.1 }, FedNAR: { radius: 1, lambda: 0.01 } };
  const { make, button, group, folded } = Drawing;
  const { CLIENTS, PARAMETERS, SPLITS } = Choices;
  const train = Choices.unpacked(DIGITS.train);
  const test = Choices.unpacked(DIGITS.test);
  const byClass = Choices.of(train.y);
  const { state, wrong } = Choices.read(byClass, given);
  const ask = connected();
  let [curve, earlier, last, playing, busy] = [[], [], null, false, false];

  // ---- what is on the page

  const { line, say } = Drawing.status();
  const field = make("div", { class: "live-field" });
  const table = make("tbody");
  const chart = make("div", { class: "live-chart" });
  const bars = make("div", { class: "live-chart" });
  const rows = make("div", { class: "live-field" });
  const splits = group(
    "who holds which digits",
    ...Object.entries(SPLITS).map(([kind, words]) =>
      button(words, () => deal(kind, Choices.dealt(byClass, kind)), { "data-kind": kind }),
    ),
  );
  const play = button("Play", () => (playing ? (pause(), tell()) : start()));
  const sweep = sweeper((name, value) => message({ ...state, [name]: value }), say);
  const sketch = sketchpad((image) => ask({ what: "read", image }));

  /** A setting; its name is a button that tries all values. */
  function control(name) {
    const spec = PARAMETERS[name];
    const changed = (value) => {
      state[name] = value;
      begin();
    };
    const all = { class: "live-name", title: `try several values: ${spec.words}` };
    const swept = button(spec.words, () => somebody() && (pause(), sweep.show(name)), all);
    return make("span", {}, swept, Controls.control(spec, state[name], changed, say, ""));
  }

  function cell(k, c) {
    const changed = ({ target }) => {
      const others = state.held.reduce((a, row, i) => a + (i === k ? 0 : row[c]), 0);
      const free = byClass[c].length - others;
      const number = Math.max(0, Math.min(free, Math.floor(+target.value || 0)));
      const asked = +target.value;
      target.value = state.held[k][c] = number;
      state.split = "own";
      drawField();
      begin(number === asked ? "" : `Of class ${c}, ${free} images are free for client ${k + 1}.`);
    };
    const words = `images of class ${c} that client ${k + 1} holds`;
    const value = state.held[k][c];
    const input = { type: "number", min: 0, value, "aria-label": words, onchange: changed };
    return make("td", {}, make("input", input));
  }

  function drawField() {
    field.innerHTML = Drawing.dots(
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
    chart.innerHTML = Drawing.curves(
      "test accuracy of the server (%)",
      `Test accuracy after ${last.rounds} rounds: ${percent} per cent. Grey: the run before.`,
      [
        { points: earlier, kind: "live-before" },
        { points: curve, kind: "live-now" },
      ],
    );
    const words = last.before.map(([k, share]) => `client ${k + 1} ${(100 * share).toFixed(0)}`);
    bars.innerHTML = Drawing.bars(
      "each client before the merge (%)",
      `Test accuracy before the merge, in per cent: ${words.join(", ") || "no step taken yet"}; merged ${percent}.`,
      state.held.map((_, k) => k + 1),
      last.before,
      last.accuracy,
    );
    const moves = state.held.map((row) => row.map(() => 0));
    for (const [k, , , by] of last.before)
      moves[k] = by.map((move) => (Number.isFinite(move) ? move : 0));
    rows.innerHTML = Drawing.dots(
      "how far each class's row of the classifier ran",
      "A dot for each client and class: how far that row of the client's classifier moved from the server's",
      moves,
      (k, c) => `client ${k + 1}, class ${c}: ${moves[k][c].toFixed(3)}`,
      false,
    );
  }

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

  const somebody = () =>
    state.held.flat().some(Boolean) || (say("Nobody holds a digit: deal some first."), false);

  async function send(what, more = {}) {
    if (busy || (what !== "make" && !somebody())) return false;
    busy = true;
    try {
      last = { ...(await ask({ what, ...more })), waiting: what === "step" };
    } catch (error) {
      say(`The engine stopped: ${error.message}. Start again.`);
      return false;
    } finally {
      busy = false;
    }
    if (what !== "step")
      curve = [...curve.filter(([t]) => t < last.rounds), [last.rounds, last.accuracy]];
    drawResults();
    if (!playing || !last.fine || last.rounds % 10 === 0) tell();
    return last.fine;
  }

  const message = ({ norm, method, lr, steps, cohort, seed, held }) => ({
    what: "make", net: { sizes: [64, 64, 32, 10], norm, groups: 8 }, ...train, test, parts: Choices.parts(byClass, held, seed),
    method, lr: +lr, steps, cohort, seed, batch: BATCH, settings: METHOD[method] ?? {},
  }); // prettier-ignore

  async function begin(words = "") {
    pause();
    sweep.stop();
    while (busy) await new Promise((done) => setTimeout(done, 10));
    if (curve.length > 1) earlier = curve;
    curve = [];
    Choices.write(state);
    await send("make", message(state));
    const out = state.held.flatMap((row, k) => (row.some(Boolean) ? [] : [k + 1]));
    if (words) say(words);
    else if (out.length) say(`Without a digit, and so sitting out: client ${out.join(", ")}.`);
  }

  function deal(kind, held, words = "") {
    Object.assign(state, { split: kind, held });
    drawField();
    const tableRow = (row, k) =>
      make("tr", {}, make("th", { scope: "row" }, String(k + 1)), ...row.map((_, c) => cell(k, c)));
    table.replaceChildren(...held.map(tableRow));
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
  const heightAt = ({ clientY }, svg) => {
    const box = svg.getBoundingClientRect();
    return ((clientY - box.top) / box.height) * 304;
  };
  Drawing.draggable(
    field,
    (name, event, svg) =>
      svg.querySelector(`[data-drag="${name}"]`).setAttribute("cy", heightAt(event, svg)),
    (name, event, svg) => {
      const [k, c] = name.split(",").map(Number);
      const to = Math.max(0, Math.min(CLIENTS - 1, Math.round((heightAt(event, svg) - 36) / 26)));
      const held = state.held.map((row) => [...row]);
      if (to !== k) [held[to][c], held[k][c]] = [held[to][c] + held[k][c], 0];
      deal(to === k ? state.split : "own", held);
    },
  );

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
    line,
    sweep.box,
    folded(
      "Who holds what, as numbers",
      make("div", { ...around, "aria-label": "images of each class, by client" }, numbers),
    ),
    folded("The classifier's rows before the merge", rows),
    folded("Draw a digit of your own", sketch.box),
  );
  deal(state.split, state.held, Controls.ignored(wrong));
};

startPieces();
