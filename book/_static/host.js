// The engine of federation.js behind messages: in a worker where the browser has one, else here between two pictures.
"use strict";

/** The engine's side: messages in, what there is to see out. The same in a worker and without. */
function liveHost(engine) {
  let one, given, random, before, rounds;
  const accuracy = (from, every = 1) => {
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
  const seen = (more) => ({ rounds, accuracy: accuracy(one.server), before, ...more });
  const look = (every) =>
    (before = one.locals().map((local) => [local.k, accuracy(local, every), local.steps]));
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
      [before, rounds] = [[], 0];
      return seen({ fine: true });
    }
    if (what === "merge") return one.locals().length ? merged() : seen({ fine: true });
    stepped(what === "step" ? 1 : given.steps);
    if (what === "fast") return merged();
    look(what === "play" ? 4 : 1);
    return what === "step"
      ? seen({ fine: one.locals().every(({ loss }) => Number.isFinite(loss)) })
      : merged();
  };
}

/** A function from a message to a promise of the reply. */
function connected() {
  try {
    const source = `${makeFederation};${liveHost};const host=liveHost(makeFederation());
      onmessage=({data})=>postMessage(host(data));`;
    const worker = new Worker(URL.createObjectURL(new Blob([source])));
    return (message) =>
      new Promise((done) => {
        worker.onmessage = ({ data }) => done(data);
        worker.postMessage(message);
      });
  } catch {
    const host = liveHost(Federation); // a browser that allows no worker here
    return (message) => new Promise((done) => setTimeout(() => done(host(message))));
  }
}
