"""Holds the pages of docs/ together: links lead somewhere, the book has every page, what stops an attack has its test."""

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


def tests():
    """The functions that tests are, and what `make` knows."""
    for folder in ("node", "protocol", "storage", "tests"):
        for source in (ROOT / folder).rglob("*.rs"):
            yield from re.findall(r"#\[(?:tokio::)?test\b[^\n]*\]\n(?:#\[[^\n]*\]\n|\s+#\[[^\n]*\]\n)*\s*(?:async )?fn (\w+)", source.read_text())
    for target in re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M):
        yield f"make {target}"


def attacks(page, known):
    """Each row of a table whose last column is of tests names one, and none that is not there."""
    tested = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells or cells[-1] in ("test", "tried by"):
            tested = bool(cells)
        elif tested and not set(line) <= set("|- "):
            named = re.findall(r"`([^`]+)`", cells[-1])
            named = [name for name in named if "_" in name or "/" in name or name.startswith("make ")]
            if not named:
                yield f"{page.relative_to(ROOT)}: no test is named for: {cells[0]}"
            for name in named:
                if name not in known and not (ROOT / name).is_file():
                    yield f"{page.relative_to(ROOT)}: there is no test {name}"


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
    known = set(tests())
    wrong += [line for page in pages for line in attacks(page, known)]
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(pages)} pages, {len(wrong)} errors")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
