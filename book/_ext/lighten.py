"""What the built pages need not carry: most of an icon font, a script that draws its icons again, large pictures.

A first visit to a chapter would fetch more than three megabytes, of which a reader sees a third. After the build

- the theme's Font Awesome script goes (it replaces each icon of the font by a drawing of the same icon);
- MathJax goes from pages without a formula;
- the icon fonts keep only the icons that a page or a style sheet names;
- pictures become WebP with 64 colours, which is lossless but for that, or lossy where 64 colours would show;
- of the widgets' saved state stays what `_static/explorers.js` reads; the frame that an explorer starts with moves out
  of it into the page, where a browser without scripts shows it, too.
"""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fontTools import subset
from PIL import Image, ImageChops, ImageStat, features

AWESOME = "_static/vendor/fontawesome"
SCRIPT = re.compile(r'\s*<script src="[^"]*/fontawesome/[^"]*\.js[^"]*"></script>')
PRELOAD = re.compile(r'\s*<link rel="preload" as="font"[^>]*/fontawesome/[^>]*>')
MATHJAX = re.compile(r'\s*<script(?:[^>]* src="[^"]*mathjax[^"]*">|>window\.MathJax = [^<]*)</script>', re.I)
VIEW = re.compile(r'<script type="application/vnd\.jupyter\.widget-view\+json">(.*?)</script>', re.S)
STATE = re.compile(r'(<script type="application/vnd\.jupyter\.widget-state\+json">)(.*?)(</script>)', re.S)
SHOWN = {"VBoxModel", "StackModel", "HTMLModel", "DropdownModel", "SelectionSliderModel", "LinkModel"}
PICTURE = re.compile(r'(_images/[^"\s]+)\.png(?=["\s])')


def setup(app):
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def lighten(app, error):
    if error or app.builder.format != "html":
        return
    site = Path(app.outdir)
    pages = sorted(site.rglob("*.html"))
    pictures = features.check("webp")
    icons = used_icons(site, pages)
    for page in pages:
        before = page.read_text(encoding="utf-8")
        after = PRELOAD.sub("", SCRIPT.sub("", before))
        after = after if 'class="math' in after else MATHJAX.sub("", after)
        after = PICTURE.sub(r"\1.webp", after) if pictures else after
        after = with_stills(after)
        if after != before:
            page.write_text(after, encoding="utf-8")
    with ThreadPoolExecutor() as pool:  # Pillow encodes without holding up other threads
        list(pool.map(replace_by_webp, site.glob("_images/*.png") if pictures else ()))
    for style in site.glob(f"{AWESOME}/*/css/all.min.css"):
        style.write_text(
            style.read_text(encoding="utf-8").replace('.woff2) format("woff2")', '.woff) format("woff")'),
            encoding="utf-8",
        )
        for font in style.parent.parent.glob("webfonts/*.woff2"):
            shrink(font.with_suffix(".ttf"), icons)


def with_stills(page: str) -> str:
    """The page with the first frame of each explorer moved from the widgets' state to its place on the page."""
    saved = STATE.search(page)
    if saved is None or "explore-still" in page:  # done in an earlier build
        return page
    content = json.loads(saved[2])
    models = content["state"] = {i: m for i, m in content["state"].items() if m["model_name"] in SHOWN}

    def first(reference: str) -> dict:
        """The frame that a Stack shows, or that a VBox ends with."""
        own = models[reference.removeprefix("IPY_MODEL_")]["state"]
        return first(own["children"][own.get("selected_index", -1)]) if "children" in own else own

    def with_still(view: re.Match) -> str:
        model = json.loads(view[1])["model_id"]
        if model not in models:  # a widget that is no explorer
            return view[0]
        frame = first(model)
        still, frame["value"] = frame["value"], None
        return view[0] + (f'<div class="explore-still">{still}</div>' if still else "")

    page = VIEW.sub(with_still, page)
    state = json.dumps(content, separators=(",", ":")).replace("</", r"<\/")
    return STATE.sub(lambda tag: tag[1] + state + tag[3], page)


def replace_by_webp(picture: Path) -> None:
    picture.with_suffix(".webp").write_bytes(as_webp(Image.open(picture).convert("RGB")))
    picture.unlink()


def as_webp(picture: Image.Image) -> bytes:
    """Bytes of a picture: 64 colours without loss if they are hardly off (drawings), else lossy (photographs)."""
    flat = picture.quantize(64).convert("RGB")
    off = max(ImageStat.Stat(ImageChops.difference(picture, flat)).mean)
    out = io.BytesIO()
    if off < 1:  # of 255
        flat.save(out, "WEBP", lossless=True, method=4)
    else:
        picture.save(out, "WEBP", quality=85, method=4)
    return out.getvalue()


def used_icons(site: Path, pages: list[Path]) -> set[int]:
    """Code points of the icons that pages, scripts and style sheets name."""
    (sheet,) = site.glob(f"{AWESOME}/*/css/all.min.css")
    codes = {
        name: int(code, 16)
        for names, code in re.findall(
            r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}', sheet.read_text(encoding="utf-8")
        )
        for name in re.findall(r"\.(fa-[\w-]+):before", names)
    }
    others = [
        path
        for kind in ("*.css", "*.js")
        for path in (site / "_static").rglob(kind)
        if "vendor" not in path.relative_to(site / "_static").parts
    ]
    used = set()
    for path in [*pages, *others]:
        text = path.read_text(encoding="utf-8")
        used |= {codes[name] for name in re.findall(r"\bfa-[a-z0-9-]+", text) if name in codes}
        if path.suffix == ".css":
            used |= {ord(char) for char in re.findall("[\ue000-\uf8ff]", text)}
            used |= {int(code, 16) for code in re.findall(r"\\([ef][0-9a-f]{3})\b", text)}
    return used


def shrink(font: Path, icons: set[int]) -> None:
    """Write the part of a TrueType font that has these code points beside it, as WOFF; drop the larger formats."""
    options = subset.Options(flavor="woff", notdef_outline=False, layout_features=[])
    whole = subset.load_font(str(font), options)
    some = subset.Subsetter(options)
    some.populate(unicodes=icons)
    some.subset(whole)
    subset.save_font(whole, str(font.with_suffix(".woff")), options)
    font.with_suffix(".woff2").unlink()
    font.unlink()
