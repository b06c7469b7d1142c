// One setting of the ten clients tried at all its values: small multiples, the others as they are.
"use strict";

const SWEEP_ROUNDS = 30;

/** A box of small curves: show(name, made) fills it, made(name, value) is the message that begins a run. */
function sweeper(made, say) {
  const box = Drawing.make("div", { class: "live-many" });
  let turn = 0; // a sweep that is begun ends the one before
  async function show(name) {
    const { words } = Choices.PARAMETERS[name];
    const mine = ++turn;
    const ask = connected();
    const found = [];
    box.replaceChildren();
    for (const value of Choices.SWEPT[name]) {
      const place = Drawing.make("div");
      box.append(place);
      const points = [];
      await ask(made(name, value));
      for (let t = 1; t <= SWEEP_ROUNDS && mine === turn; t++) {
        const { accuracy, fine } = await ask({ what: "fast" });
        if (!fine) break;
        points.push([t, accuracy]);
        if (t % 5 === 0) place.innerHTML = drawn(`${words} ${value}`, points);
      }
      if (mine !== turn) return;
      place.innerHTML = drawn(`${words} ${value}`, points);
      found.push([value, points.length === SWEEP_ROUNDS ? points.at(-1)[1] : NaN]);
      say(`${words} ${value}: ${ended(found.at(-1)[1])} after ${SWEEP_ROUNDS} rounds.`);
    }
    const all = found.map(([value, share]) => `${value} ${ended(share)}`);
    say(`After ${SWEEP_ROUNDS} rounds, by ${words}: ${all.join(", ")}.`);
  }
  const ended = (share) => (Number.isNaN(share) ? "not finite" : `${(100 * share).toFixed(0)} %`);
  const drawn = (heading, points) => {
    const share = points.length ? (100 * points.at(-1)[1]).toFixed(0) : "no";
    return Drawing.curves(
      heading,
      `${heading}: ${share} per cent of the test images after ${points.length} rounds.`,
      [{ points, kind: "live-now" }],
      160,
    );
  };
  const stop = () => {
    turn += 1;
    box.replaceChildren();
  };
  return { box, show, stop };
}
