// The engine of federation.js behind messages: in a worker where the browser has one, else here between two pictures.
"use strict";

/** The engine's side: messages in, what there is to see out. The same in a worker and without. */
function liveHost(engine) {
  let one, given, random, rounds;
  let kept = []; // the clients' networks as they were before the last merge, or are
  const right = (from, every = 1) => {
    const { x, y, d } = given.test;
    const some = y.map((_, i) => i).filter((i) => i % every === 0);
    const rows = new Float64Array(some.length * d);
    some.forEach((i, r) => rows.set(x.subarray(i * d, (i + 1) * d), r * d));
    return one.predict(rows, from).filter((c, r) => c === y[some[r]]).length / some.length;
  };
  const there = () => given.parts.map((_, k) => k).filter((k) => given.parts[k].length);
  const draw = () =>
    engine
      .shuffled(there(), random)
      .slice(0, given.cohort)
      .sort((a, b) => a - b);
  /** How far each row of a client's classifier has moved from the server's, whose last layer it is. */
  const moved = ({ w, start }) => {
    const { W, inputs, size } = one.net.layers.at(-1);
    const of = (c) => [W + c * inputs, W + (c + 1) * inputs];
    return Array.from({ length: size }, (_, c) =>
      Math.hypot(...w.slice(...of(c)).map((v, i) => v - start[of(c)[0] + i])),
    );
  };
  let before = []; // of each client: its number, accuracy, local steps, moves of its classifier's rows
  const look = (every) => {
    kept = one.locals().slice();
    before = kept.map((local) => [local.k, right(local, every), local.steps, moved(local)]);
  };
  const seen = (more) => ({ rounds, accuracy: right(one.server), before, ...more });
  const stepped = (n) => {
    if (!one.locals().length) one.begin(draw());
    for (const local of one.locals())
      for (const batch of engine.batches(given.parts[local.k], given.batch, n, random))
        one.stepOf(local, batch);
  };
  const merged = () => {
    const fine = one.merge();
    rounds += 1;
    return seen({ fine });
  };
  return ({ what, ...message }) => {
    if (what === "make") {
      given = message;
      random = engine.generator(given.seed);
      one = engine.federation({ ...given, ...engine.initial(given.net, random) });
      [before, kept, rounds] = [[], [], 0];
      return seen({ fine: true });
    }
    if (what === "read") {
      const answer = (from) => one.predict(message.image, from)[0];
      return { server: answer(one.server), clients: kept.map((local) => [local.k, answer(local)]) };
    }
    if (what === "merge") return one.locals().length ? merged() : seen({ fine: true });
    stepped(what === "step" ? 1 : given.steps);
    if (what === "fast") return merged();
    look(what === "play" ? 6 : 1); // while it plays, bars are of every sixth image
    return what === "step"
      ? seen({ fine: one.locals().every(({ loss }) => Number.isFinite(loss)) })
      : merged();
  };
}

/** A function from a message to a promise of the reply; replies come in the order of the messages. */
function connected() {
  let worker;
  try {
    const source = `${makeFederation};${liveHost};const host=liveHost(makeFederation());
      onmessage=({data})=>postMessage(host(data));`;
    worker = new Worker(URL.createObjectURL(new Blob([source])));
  } catch {
    const host = liveHost(Federation); // a browser that allows no worker here
    return (message) => new Promise((done) => setTimeout(() => done(host(message))));
  }
  const waiting = [];
  worker.onmessage = ({ data }) => waiting.shift().done(data);
  worker.onerror = ({ message }) => waiting.shift()?.failed(new Error(message));
  return (message) =>
    new Promise((done, failed) => {
      waiting.push({ done, failed });
      worker.postMessage(message);
    });
}
