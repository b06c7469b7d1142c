// Bars that a reader can move. The page holds each claim's intervals and what was judged of them; this judges again, by the
// rule of Bar.verdict in fedlib/book/bars.py, against the bars where the sliders stand.
document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  const board = document.querySelector(".argue");
  if (!board) return;
  const words = JSON.parse(board.querySelector("script[type='application/json']").textContent);
  const number = text => (text === undefined || text === "" ? NaN : Number(text));
  const moved = slider => slider.value !== slider.dataset.start;
  const shown = value => String(+value.toPrecision(3)).replace("-", "−");

  const close = (end, weaker, rounding) => Math.abs(end - weaker) < rounding; // false where there is no weaker bar

  // An interval against a bar: the whole of it must lie on the good side.
  function verdict(low, high, sense, bar, weaker, rounding) {
    if (Number.isNaN(low) || Number.isNaN(high)) return "undecided";
    const side = (value, bar) => (sense === "at least" ? value - bar : bar - value);
    const [near, far] = sense === "at least" ? [low, high] : [high, low];
    if (side(near, bar) >= rounding) return "holds";
    if (!Number.isNaN(weaker) && side(near, weaker) >= rounding) return "holds in part";
    if (close(near, weaker, rounding)) return "undecided"; // rounding alone would make it hold in part
    return side(far, bar) < -rounding ? "does not hold" : "undecided";
  }

  // A claim of several parts holds only if every part does.
  const together = verdicts =>
    ["not run", "does not hold", "undecided", "holds in part"].find(one => verdicts.includes(one)) || "holds";

  function paint(badge, kind, text = kind) {
    badge.className = `verdict ${kind.replaceAll(" ", "-")}`;
    badge.querySelector("[aria-hidden]").textContent = words.marks[kind];
    badge.querySelector(".word").textContent = text;
  }

  function judgePart(part) {
    const slider = part.querySelector("input[type=range]");
    if (!slider) return;
    const { sense } = part.dataset;
    const place = (slider.value - slider.min) / (slider.max - slider.min);
    part.style.setProperty("--bar", 100 * place);
    const output = part.querySelector("output");
    output.textContent = shown(+slider.value);
    for (const line of part.querySelectorAll(".line[data-preset]")) {
      const { low, high, near, far, recorded, rounding } = line.dataset;
      line.dataset.verdict = !moved(slider) ? recorded : verdict(
        number(low), number(high), sense, +slider.value, number(part.dataset.weaker), +rounding);
      paint(line.querySelector(".verdict"), line.dataset.verdict);
      const open = close(number(sense === "at least" ? low : high), number(part.dataset.weaker), +rounding);
      const key = line.dataset.verdict === "undecided" && open ? "holds in part" : line.dataset.verdict;
      const stands = near === undefined ? "" : words.stands[sense][key];
      line.querySelector(".stands").textContent = stands.replace("{near}", near).replace("{far}", far);
    }
    const said = [...part.querySelectorAll(".line[data-preset]")].map(
      line => `${line.dataset.preset} ${line.dataset.verdict}`);
    slider.setAttribute("aria-valuetext", [output.textContent, ...said].join(", "));
  }

  function judgeClaim(claim) {
    let last = claim.dataset.recorded;
    for (const preset of claim.querySelectorAll("dl [data-preset]")) {
      const lines = [...claim.querySelectorAll(`.line[data-preset="${preset.dataset.preset}"]`)];
      last = lines.length ? together(lines.map(line => line.dataset.verdict)) : preset.dataset.recorded;
      paint(preset.querySelector(".verdict"), last);
    }
    claim.className = `claim ${last.replaceAll(" ", "-")}`;
    claim.dataset.verdict = last; // the largest preset has the last word
  }

  const count = (claims, kind) => [...claims].filter(claim => claim.dataset.verdict === kind).length;

  function tally() {
    const claims = board.querySelectorAll(".claim"), all = claims.length;
    const told = words.verdicts.map(kind => [count(claims, kind), words.verbs[kind]]).filter(([n]) => n)
      .map(([n, verb]) => `${n} ${verb[+(n > 1)]}`);
    const sentence = `Of ${all} claim${all > 1 ? "s" : ""}, ${told.join(", ")}.`;
    const status = board.querySelector(".tally [role=status]");
    if (status.textContent !== sentence) status.textContent = sentence; // else it would be read out again
    for (const chapter of board.querySelectorAll("details.board")) {
      const own = chapter.querySelectorAll(".claim"), head = chapter.querySelector("summary");
      head.querySelectorAll(".verdict").forEach(badge => badge.remove());
      for (const kind of words.verdicts) {
        const n = count(own, kind);
        if (!n) continue;
        const badge = board.querySelector(".claim .verdict").cloneNode(true);
        paint(badge, kind, `${n} ${words.verbs[kind][+(n > 1)]}`);
        head.append(" ", badge);
      }
    }
  }

  const sliders = [...board.querySelectorAll("input[type=range]")], back = board.querySelector(".tally button");
  function judge(...some) {
    for (const slider of some) {
      judgePart(slider.closest(".part"));
      judgeClaim(slider.closest(".claim"));
    }
    tally();
    back.hidden = !sliders.some(moved);
  }
  for (const slider of sliders) {
    slider.dataset.start = slider.value;
    slider.closest(".line").hidden = false;
    slider.addEventListener("input", () => judge(slider));
  }
  board.querySelectorAll(".claim").forEach(judgeClaim);
  back.addEventListener("click", () => {
    const away = sliders.filter(moved);
    for (const slider of away) slider.value = slider.dataset.start;
    board.querySelector(".tally [role=status]").focus(); // the button is about to go
    judge(...away);
  });
});
