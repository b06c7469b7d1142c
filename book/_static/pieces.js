// A live piece begins when it comes into view, or when the keyboard reaches it. Until then its still stands there.
"use strict";

const Pieces = {};

function startPieces() {
  const begin = (root) => {
    if (root.dataset.begun) return;
    root.dataset.begun = "yes";
    watch.unobserve(root);
    root.removeAttribute("tabindex");
    Pieces[root.dataset.piece](root, JSON.parse(root.dataset.settings || "{}"));
  };
  const near = { rootMargin: "50% 0px" };
  const watch = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) if (isIntersecting) begin(target);
  }, near);
  for (const root of document.querySelectorAll(".live:not([data-begun])")) {
    if (!Pieces[root.dataset.piece]) continue; // of scripts that another cell of a notebook brings
    root.tabIndex = 0;
    root.addEventListener("focus", () => begin(root), { once: true });
    watch.observe(root);
  }
}
