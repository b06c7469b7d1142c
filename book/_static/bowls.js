// Two clients with a quadratic loss each and two weights: what federated averaging makes of them. Minima and start can be
// dragged; local steps, rate, weight decay and clip radius are sliders.
"use strict";

const Quadratics = (() => {
  const minus = (v, u) => v.map((x, i) => x - u[i]);
  const times = (M, v) => M.map((row) => row[0] * v[0] + row[1] * v[1]);
  const added = (M, d) => [[M[0][0] + d, M[0][1]], [M[1][0], M[1][1] + d]]; // prettier-ignore
  const solve = ([[a, b], [c, d]], [x, y]) => {
    const det = a * d - b * c;
    return [(d * x - b * y) / det, (a * y - c * x) / det];
  };
  const clip = (v, radius) => {
    const factor = Math.min(1, radius / (Math.hypot(...v) + 1e-6));
    return factor < 1 ? v.map((x) => factor * x) : v;
  };

  // Gradient g and decay d to a step: the decay outside the clip, as an optimiser has it, or inside.
  const STEP = {
    base: (g, d, radius) => clip(g, radius).map((x, i) => x + d[i]),
    NAR: (g, d, radius) => clip(g.map((x, i) => x + d[i]), radius), // prettier-ignore
  };

  /** One client's minimum with decay, (H + decay I)^-1 H a. */
  const minimum = (H, a, decay) => solve(added(H, decay), times(H, a));

  const meanOf = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  /** The Hessian of the mean of all losses, with decay, and its minimum. */
  const mean = (H, decay) =>
    added([0, 1].map((i) => [0, 1].map((j) => meanOf(H.map((h) => h[i][j])))), decay); // prettier-ignore
  const shared = (H, minima, decay) =>
    solve(mean(H, decay), [0, 1].map((i) => meanOf(H.map((h, k) => times(h, minima[k])[i])))); // prettier-ignore

  /**
   * FedAvg: the server's points, rounds + 1 of them, and each client's local steps in each round.
   *
   * @param given H, minima: of each client; start; steps, lr, decay, ball; side: "base" or "NAR"
   */
  function federate(
    { H, minima, start, steps, lr, decay = 0, ball = Infinity, side = "base" },
    rounds,
  ) {
    const server = [start];
    const walks = [];
    for (let t = 0; t < rounds; t++) {
      const walk = H.map((h, k) => {
        const path = [server.at(-1)];
        for (let s = 0; s < steps; s++) {
          const w = path.at(-1);
          const G = STEP[side](times(h, minus(w, minima[k])), w.map((x) => decay * x), ball); // prettier-ignore
          path.push(minus(w, G.map((x) => lr * x))); // prettier-ignore
        }
        return path;
      });
      walks.push(walk);
      const ends = walk.map((path) => path.at(-1));
      server.push([0, 1].map((i) => meanOf(ends.map((w) => w[i]))));
    }
    return { server, walks };
  }

  /** Where the server would come to rest, after any number of rounds: without a clip a round is an affine map. */
  function rest(given) {
    const after = (start) => federate({ ...given, start }, 1).server[1];
    const still = after([0, 0]);
    const [first, second] = [after([1, 0]), after([0, 1])].map((w) => minus(w, still));
    return solve([[1 - first[0], -second[0]], [-first[1], 1 - second[1]]], still); // prettier-ignore
  }

  /** The ellipse on which (w - a)' H (w - a) = level: [long half axis, short half axis, degrees of the first]. */
  function ellipse([[a, b], [, d]], level) {
    const middle = (a + d) / 2;
    const off = Math.hypot((a - d) / 2, b);
    const angle = b || a !== d ? Math.atan2(2 * b, a - d) / 2 + Math.PI / 2 : 0; // of the flat direction
    return [
      Math.sqrt(level / (middle - off)),
      Math.sqrt(level / (middle + off)),
      (angle * 180) / Math.PI,
    ];
  }

  return { minimum, mean, shared, federate, rest, ellipse };
})();

Pieces.bowls = (root, given) => {
  const { make, group, folded } = Drawing;
  const { H, rounds, sides, xlim: wide, ylim: tall } = given;
  const WORDS = {
    decay: { words: "weight decay λ", low: 0.01, high: 2, log: true },
    ball: { words: "clip radius A", low: 0.1, high: 10, log: true },
    steps: { words: "local steps", whole: true, low: 1, high: 50 },
    lr: { words: "learning rate", low: 0.01, high: 0.4, log: true },
  };
  const SPECS = Object.fromEntries(
    Object.entries(given.settings).map(([name, start]) => [name, { ...WORDS[name], start }]),
  );
  const NAMES = { a1: "minimum of client 1", a2: "minimum of client 2", start: "start" };
  const { state, wrong } = Controls.read(SPECS, Object.keys(NAMES));
  const inside = (v, [low, high]) => v >= low && v <= high;

  /** A point as it stands in an address, "1.5,-2". */
  function placed(name, usual) {
    const text = new URLSearchParams(location.search).get(name);
    if (text === null) return usual;
    const point = Controls.numbers(text, ",");
    if (point.length === 2 && inside(point[0], wide) && inside(point[1], tall)) return point;
    wrong.push(`${name}=${text}`);
    return usual;
  }
  const at = {
    a1: placed("a1", given.minima[0]),
    a2: placed("a2", given.minima[1]),
    start: placed("start", given.start),
  };

  const { line, say } = Drawing.status();
  const field = make("div", { class: "live-field live-plane" });
  const PLANE = Drawing.plane(wide, tall, 340);
  const two = (v) => (Number.isFinite(v) ? +v.toPrecision(2) : "∞");
  const apart = (p, q) => Math.hypot(p[0] - q[0], p[1] - q[1]);

  /** Level lines of a quadratic loss around its minimum. */
  function levels(H, centre, kind) {
    const [x, y] = PLANE.at(...centre);
    return [0.15, 0.6, 1.4, 2.4].map((level) => {
      const [long, short, degrees] = Quadratics.ellipse(H, 2 * level);
      const radii = `rx="${PLANE.scale * long}" ry="${PLANE.scale * short}"`;
      return `<ellipse class="${kind}" cx="${x}" cy="${y}" ${radii} transform="rotate(${-degrees} ${x} ${y})"/>`;
    });
  }

  function draw() {
    const { decay = 0, ball = Infinity } = state;
    const settings = { H, minima: [at.a1, at.a2], start: at.start, ...state };
    const star = Quadratics.shared(H, settings.minima, decay);
    const found = sides.map((side) => ({
      side,
      ...Quadratics.federate({ ...settings, side }, rounds),
    }));
    const moved = (name, shape, kind, words) =>
      PLANE.handle(at[name], shape, kind, name) + PLANE.label(at[name], words);
    const local = sides.length > 1 ? [] : found[0].walks.flatMap((walk) => walk.map((path, k) => PLANE.line(path, `live-walk live-client-${k}`))); // prettier-ignore
    const words = told(found, star, ball / decay, settings);
    field.innerHTML = PLANE.draw(
      `Two clients' minima, the server's path in the plane of two weights. ${words}`,
      sides.length > 1
        ? levels(Quadratics.mean(H, decay), star, "live-bowl")
        : H.map((h, k) => levels(h, settings.minima[k], `live-bowl live-client-${k}`)),
      decay ? PLANE.circle([0, 0], ball / decay, "live-bound") : "",
      decay ? PLANE.mark([0, 0], "cross", "live-origin") : "",
      local,
      found.map(({ side, server }) => PLANE.line(server, `live-path live-${side}`)),
      found.map(({ side, server }) => server.slice(1, 26).map((p) => PLANE.circle(p, 3 / PLANE.scale, `live-${side}`))), // prettier-ignore
      decay ? H.map((h, k) => PLANE.mark(Quadratics.minimum(h, settings.minima[k], decay), "square", `live-client-${k}`)) : "", // prettier-ignore
      PLANE.mark(star, "star", "live-star"),
      found.map(
        ({ side, server }) =>
          PLANE.mark(server.at(-1), "dot", `live-${side}`) +
          (local.length ? "" : PLANE.label(server.at(-1), side)),
      ),
      moved("a1", "dot", "live-client-0", "a₁"),
      moved("a2", "dot", "live-client-1", "a₂"),
      moved("start", "cross", "live-origin", "start"),
    );
    say(words);
    const points = Object.entries(at).map(([name, p]) => [
      name,
      p.map((v) => +v.toFixed(2)).join(","),
    ]);
    Controls.write({ ...state, ...Object.fromEntries(points) });
  }

  function told(found, star, bound, settings) {
    const far = (w) => `${two(apart(w, star))} from the star`;
    const finite = ({ server }) => server.at(-1).every((v) => Math.abs(v) < 1e6);
    const lost = found.filter((one) => !finite(one)).map(({ side }) => side);
    if (lost.length)
      return `Not finite any more (${lost.join(", ")}): try a smaller learning rate.`;
    const [{ server }] = found;
    if (sides.length === 1)
      return `After ${rounds} rounds the server is ${far(server.at(-1))}; it would end ${far(Quadratics.rest(settings))}.`;
    const each = found.map(
      ({ side, server: path }) =>
        `${side}: ‖w‖ = ${two(Math.hypot(...path.at(-1)))}, ${far(path.at(-1))}`,
    );
    return `After ${rounds} rounds ${each.join("; ")}. A / λ = ${two(bound)}.`;
  }

  const slider = (name) =>
    Controls.control(SPECS[name], state[name], (value) => ((state[name] = value), draw()), say);

  /** Two number fields for each point that can be dragged. */
  function listed() {
    const number = (name, i) => {
      const [low, high] = i ? tall : wide;
      const value = +at[name][i].toFixed(2);
      const changed = ({ target }) => {
        at[name] = at[name].map((v, j) =>
          i === j ? Math.max(low, Math.min(high, +target.value || 0)) : v,
        );
        target.value = at[name][i];
        draw();
      };
      const words = `${NAMES[name]}, ${i ? "second" : "first"} weight`;
      const field = { type: "number", min: low, max: high, step: 0.1, value, "aria-label": words };
      return make("input", { ...field, onchange: changed });
    };
    const rows = Object.keys(NAMES).map((name) =>
      group(NAMES[name], NAMES[name], number(name, 0), number(name, 1)),
    );
    numbers.replaceChildren(...rows);
  }
  const numbers = make("div");

  Drawing.draggable(
    field,
    (name, event, svg) => {
      at[name] = PLANE.back(event, svg).map((v) => +v.toFixed(2));
      draw();
    },
    listed,
  );
  root.replaceChildren(field, group("settings", ...Object.keys(SPECS).map(slider)), line, folded("The points as numbers", numbers)); // prettier-ignore
  listed();
  draw();
  if (wrong.length) say(Controls.ignored(wrong));
};

startPieces();
