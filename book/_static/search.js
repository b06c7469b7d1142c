// What the search page quotes: the words of a page, without the theme's buttons, code, formulas or the title above them.
"use strict";

const NO_WORDS =
  ".bd-header-article, .headerlink, .cell_input, .highlight, .math, script, style, table, h1";

Search.htmlToText = (source, anchor) => {
  const page = new DOMParser().parseFromString(source, "text/html");
  const article = page.querySelector("article.bd-article") ?? page.querySelector('[role="main"]');
  const quoted = (anchor && article?.querySelector(anchor)) || article;
  if (!quoted) return "";
  quoted.querySelectorAll(NO_WORDS).forEach((part) => part.remove());
  return quoted.textContent.replace(/\s+/g, " ").trim();
};
