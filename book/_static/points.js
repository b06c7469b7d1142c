// Points that a reader drags, and what layer normalisation of three features makes of them: the line, the half circle,
// the read-out. By hand, one layer; or built, as many as it takes.
"use strict";

Pieces.points = (root) => {
  const { make, button, group, folded } = Drawing;
  const SHAPES = ["dot", "square", "triangle"];
  const MOST = 12;
  const SPECS = {
    direction: { words: "direction (degrees)", low: 0, high: 180, start: 45 },
    stretch: { words: "stretch a", low: 0.2, high: 5, log: true, start: 1 },
    shift: { words: "shift b", low: -3, high: 3, start: 0 },
    fold: { words: "read-out φ (degrees)", low: 0, high: 180, start: 90 },
    layer: { words: "LN layer", whole: true, low: 1, high: 40, start: 1 },
    mode: { words: "layers", among: ["by hand", "built"], start: "by hand" },
  };
  const BY_HAND = ["direction", "stretch", "shift", "fold"];
  const ring = (m, classes) =>
    Array.from({ length: m }, (_, i) => {
      const angle = (2 * Math.PI * (i + 0.3)) / m;
      return [1.2 * Math.cos(angle), 1.2 * Math.sin(angle), i % classes];
    });
  const PRESETS = {
    XOR: [[1, 1, 0], [-1, -1, 0], [1, -1, 1], [-1, 1, 1]],
    "eight on a ring": ring(8, 2),
    "nine, three classes": ring(9, 3),
  }; // prettier-ignore

  const written = (points) =>
    points.map(([x, y, c]) => [x.toFixed(2), y.toFixed(2), c].join(",")).join("_");

  /** Points as they stand in an address; null where they are none. */
  function read(text) {
    const points = text.split("_").map((one) => Controls.numbers(one, ","));
    const inside = (v) => Number.isFinite(v) && Math.abs(v) <= 1.6;
    const sound = (p) => p.length === 3 && inside(p[0]) && inside(p[1]) && [0, 1, 2].includes(p[2]);
    return points.length >= 2 && points.length <= MOST && points.every(sound) ? points : null;
  }

  const { state, wrong } = Controls.read(SPECS, ["points"]);
  const asked = new URLSearchParams(location.search).get("points");
  const points = (asked !== null && read(asked)) || PRESETS.XOR.map((p) => [...p]);
  if (asked !== null && !read(asked)) wrong.push(`points=${asked}`);
  let built = null;

  const { line, say } = Drawing.status();
  const field = make("div", { class: "live-field live-plane" });
  const steps = make("div", { class: "live-steps" });
  const hand = group("the layer by hand");
  const deep = group("the layers built");
  const table = make("tbody");
  const PLANE = Drawing.plane([-1.7, 1.7], [-1.7, 1.7]);
  const LINE = Drawing.plane([-1.25, 1.25], [-0.22, 0.22]);
  const CIRCLE = Drawing.plane([-1.8, 1.8], [-0.2, 1.35]);

  const labels = () => points.map(([, , c]) => c);
  const kind = (c) => `live-class-${c}`;
  const told = (value) => (Number.isNaN(value) ? "–" : value < 1e-9 ? "0" : value.toFixed(3));

  // ---- pictures

  const marks = (plane, places) =>
    places.map((p, i) => plane.mark(p, SHAPES[points[i][2]], kind(points[i][2])));

  function drawField() {
    const degrees = state.mode === "built" && built ? built.degrees : state.direction;
    const [c, s] = [Math.cos((degrees * Math.PI) / 180), Math.sin((degrees * Math.PI) / 180)];
    field.innerHTML = PLANE.draw(
      `${points.length} points in a plane, and the direction of the line on which they are projected, ${degrees} degrees`,
      PLANE.line([[-3 * c, -3 * s], [3 * c, 3 * s]], "live-axis"), // prettier-ignore
      points.map(([x, y, c], i) => PLANE.handle([x, y], SHAPES[c], kind(c), i)),
    );
  }

  function drawLine(heading, t) {
    const words = `${heading}: LSSR ${told(Folding.lssr(t.map((v) => [v, 0]), labels()))}`; // prettier-ignore
    const places = Folding.rescaled(t).map((v) => [v, 0]);
    const axis = LINE.line([[-1.2, 0], [1.2, 0]], "live-rule"); // prettier-ignore
    return `<p>${words}</p>${LINE.draw(words, axis, marks(LINE, places))}`;
  }

  function drawCircle({ lifted, circle, phi, merged }) {
    const words = `lifted to a line beside the origin (+), then LN: on the half circle, LSSR ${told(Folding.lssr(circle, labels()))}`;
    const rim = Array.from({ length: 61 }, (_, i) => [Math.cos((Math.PI * i) / 60), Math.sin((Math.PI * i) / 60)]); // prettier-ignore
    const seen = lifted.filter(([u]) => Math.abs(u) <= 1.8);
    return `<p>${words}</p>${CIRCLE.draw(
      words,
      CIRCLE.line([[-1.8, 1], [1.8, 1]], "live-rule"),
      CIRCLE.line(rim, "live-rule"),
      seen.map((p) => CIRCLE.line([[0, 0], p], "live-ray")),
      CIRCLE.line([[0, 0], [1.3 * Math.cos(phi), 1.3 * Math.sin(phi)]], "live-axis"),
      merged ? CIRCLE.line(merged.map((i) => circle[i]), "live-chord") : "",
      CIRCLE.mark([0, 0], "cross", "live-origin"),
      marks(CIRCLE, circle),
    )}`; // prettier-ignore
  }

  function draw() {
    const byHand = state.mode === "by hand";
    const random = Federation.generator(1);
    built = byHand ? null : Folding.build(points.map(([x, y]) => [x, y]), labels(), random); // prettier-ignore
    hand.hidden = !byHand;
    deep.hidden = byHand;
    const number = built ? built.layers.length : 1;
    state.layer = Math.max(1, Math.min(state.layer, number));
    Object.assign(deep.querySelector("input"), { max: Math.max(1, number), value: state.layer });
    const { direction, stretch, shift, fold } = state;
    const flat = Folding.along(points, built ? built.degrees : direction);
    const one = byHand
      ? Folding.layer(flat, { stretch, shift, phi: (fold * Math.PI) / 180 })
      : built?.layers[state.layer - 1];
    drawField();
    const before = byHand || state.layer === 1 ? "projected on the direction" : "the line before";
    steps.innerHTML = one
      ? drawLine(before, one.before) +
        drawCircle(one) +
        drawLine("the line after: read out along φ", one.line)
      : drawLine("projected on the direction", flat);
    for (const choice of modes.children)
      choice.setAttribute("aria-pressed", choice.textContent === state.mode);
    Controls.write({ ...state, points: written(points) });
    tell(one);
  }

  function tell(one) {
    const classes = new Set(labels()).size;
    const plain = Folding.lssr(points, labels());
    const start = `Any linear map of these ${points.length} points leaves at least ${told(plain)} of their scatter inside the classes (LSSR).`;
    const runs = (t) => Folding.separation(t, labels()).runs;
    let end;
    if (classes < 2) end = "All have one class: nothing is to be separated.";
    else if (state.mode === "built" && !built)
      end = "No network found: two points of different classes lie on each other.";
    else if (!one) end = "A line is enough: each class has an interval to itself, without LN.";
    else {
      const now = runs(one.line);
      const which = built ? `LN layer ${state.layer} of ${built.layers.length}` : "One LN layer";
      const done =
        now === classes
          ? "each class has an interval to itself"
          : `${now} stretches of one class each`;
      end = `${which}: on the line after it, ${done}.`;
    }
    say(`${start} ${end}`);
  }

  // ---- what a reader changes

  const LOWEST = { min: -1.6, max: 1.6, step: 0.1 };
  const CLASSES = ["blue dot", "red square", "green triangle"];

  function listed() {
    const number = (point, i, axis) =>
      make("input", {
        type: "number", ...LOWEST, value: +point[axis].toFixed(2), "aria-label": `${"xy"[axis]} of point ${i + 1}`,
        onchange: ({ target }) => {
          point[axis] = Math.max(-1.6, Math.min(1.6, +target.value || 0));
          target.value = point[axis];
          draw();
        },
      }); // prettier-ignore
    const named = (point, i) => {
      const options = CLASSES.map((words, c) => new Option(words, c, false, c === point[2]));
      const changed = ({ target }) => ((point[2] = +target.value), draw());
      return make(
        "select",
        { "aria-label": `class of point ${i + 1}`, onchange: changed },
        ...options,
      );
    };
    const away = (i) => ({ "aria-label": `remove point ${i + 1}` });
    const row = (point, i) =>
      [make("th", { scope: "row" }, String(i + 1)), make("td", {}, number(point, i, 0)), make("td", {}, number(point, i, 1)),
        make("td", {}, named(point, i)), make("td", {}, button("×", () => remove(i), away(i)))]; // prettier-ignore
    table.replaceChildren(...points.map((point, i) => make("tr", {}, ...row(point, i))));
  }

  function changed(next) {
    if (next) points.splice(0, points.length, ...next.map((p) => [...p]));
    listed();
    draw();
  }

  function remove(i) {
    if (points.length <= 2) return say("Two points must stay.");
    points.splice(i, 1);
    changed();
  }

  function add(c) {
    if (points.length >= MOST) return say(`There is room for ${MOST} points.`);
    const random = Federation.generator(points.length);
    points.push([0, 1].map(() => +(2.6 * random() - 1.3).toFixed(2)).concat(c));
    changed();
  }

  const round = (v) => +Math.max(-1.6, Math.min(1.6, v)).toFixed(2);
  Drawing.draggable(
    field,
    (i, event, svg) => {
      [points[i][0], points[i][1]] = PLANE.back(event, svg).map(round);
      draw();
    },
    () => changed(),
  );

  const slider = (name) =>
    Controls.control(SPECS[name], state[name], (value) => ((state[name] = value), draw()));
  hand.append(...BY_HAND.map(slider));
  const layer = Controls.control(
    SPECS.layer,
    state.layer,
    (value) => ((state.layer = value), draw()),
    say,
  );
  const turn = (by) => ((state.layer += by), draw());
  deep.append(
    layer,
    button("before", () => turn(-1)),
    button("next", () => turn(1)),
  );
  const mode = (words) => button(words, () => ((state.mode = words), draw()));
  const modes = group("layers", ...SPECS.mode.among.map(mode));
  const head = ["point", "x", "y", "class", "remove"].map((words) =>
    make("th", { scope: "col" }, words),
  );
  const numbers = make("table", {}, make("thead", {}, make("tr", {}, ...head)), table);
  const around = { class: "live-scroll", tabindex: 0, role: "region", "aria-label": "points" };
  const preset = (name) => button(name, () => changed(PRESETS[name]));
  root.replaceChildren(
    group("points", ...Object.keys(PRESETS).map(preset)),
    group("one more point", ...CLASSES.map((words, c) => button(`+ ${words}`, () => add(c)))),
    modes,
    make("div", { class: "live-parts" }, field, steps),
    hand,
    deep,
    line,
    folded("The points as numbers", make("div", around, numbers)),
  );
  changed();
  if (wrong.length) say(Controls.ignored(wrong));
};

startPieces();
