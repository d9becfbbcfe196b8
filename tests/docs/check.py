"""Holds the pages of docs/ together: links lead somewhere, the book has every page, and nothing names this machine."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


def anchors(text):
    """What headings are called in links, as GitHub and mdBook do it."""
    found = {}
    for title in re.findall(r"^#{1,6} +(.+?)#* *$", without_fences(text), re.M):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        number = found.get(name, -1) + 1
        found[name] = number
        yield name if number == 0 else f"{name}-{number}"


def without_fences(text):
    return re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", text, flags=re.M | re.S)


def without_code(text):
    return re.sub(r"`[^`\n]*`", "`code`", without_fences(text))


def links(text):
    return LINK.findall(without_code(text))


def check(page):
    for target in links(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists():
            yield f"{page.relative_to(ROOT)}: {target} leads nowhere"
        elif anchor and to.suffix == ".md" and anchor not in anchors(to.read_text()):
            yield f"{page.relative_to(ROOT)}: {target}: there is no such heading"


def main():
    pages = sorted(DOCS.rglob("*.md"))
    wrong = [line for page in [*pages, ROOT / "README.md", ROOT / "ARCHITECTURE.md"] for line in check(page)]
    summary = DOCS / "SUMMARY.md"
    told = {(DOCS / target.partition("#")[0]).resolve() for target in links(summary.read_text())}
    wrong += [f"docs/SUMMARY.md: {page.relative_to(DOCS)} is missing" for page in pages if page != summary and page.resolve() not in told]
    for page in pages:
        if not re.match(r"# \S", page.read_text()):
            wrong.append(f"{page.relative_to(ROOT)}: the first line is no title")
        if page != summary and re.search(r"TODO|FIXME|\bTBD\b", page.read_text()):
            wrong.append(f"{page.relative_to(ROOT)}: something is left to be written")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(pages)} pages, {len(wrong)} errors")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
