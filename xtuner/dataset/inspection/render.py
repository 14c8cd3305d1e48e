"""Owns how a sample is painted: learned tokens in colour, or between marks where there are no colours."""

from rich.console import Console
from rich.text import Text

from xtuner.dataset.inspection.sample import Place, Seen
from xtuner.dataset.table.layout import to_json

LEARNED, SPECIAL, SPECIAL_LEARNED = "bold green", "reverse blue", "bold reverse green"
OPEN, CLOSE = "[[", "]]"
NEWLINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"
SHOWN_PLACES = 8


def show(seen: Seen, console: Console) -> None:
    """Print a row as training sees it. Colours follow the terminal and NO_COLOR; without them learned text stands in
    double brackets."""
    colours = console.color_system is not None and not console.no_color
    lines = Text(f"{seen.label}, row {seen.number:,}; format {seen.format}, template {seen.template}\n")
    lines.append_text(_legend(colours))
    lines.append("\n")
    if seen.stretches:
        lines.append_text(_body(seen, colours))
        count, learned = len(seen.ids), sum(seen.trained[1:])
        lines.append(f"\n\n{count:,} tokens, {learned:,} of them learned ({learned / max(1, count):.1%}).\n")
        for role, place in seen.places:
            lines.append(f"  {role:5}{_say(place)}\n")
    else:
        lines.append(f"{to_json(seen.row)}\n")
    for note in seen.notes:
        lines.append(f"{note}\n")
    console.print(lines, soft_wrap=True, end="")


def _legend(colours: bool) -> Text:
    if not colours:
        return Text(f"{OPEN}learned{CLOSE} not learned\n")
    special = ("special token", SPECIAL), "  ", ("learned special token", SPECIAL_LEARNED)
    return Text.assemble(("learned", LEARNED), "  not learned  ", *special, "\n")


def _body(seen: Seen, colours: bool) -> Text:
    body = Text()
    open_ = False
    for stretch in seen.stretches:
        text = stretch.text.replace("\n", NEWLINE) if not stretch.special else stretch.text
        if not colours:
            if stretch.trained != open_:
                body.append(OPEN if stretch.trained else CLOSE)
                open_ = stretch.trained
            body.append(text)
        elif stretch.special:
            body.append(text, SPECIAL_LEARNED if stretch.trained else SPECIAL)
        else:
            body.append(text, LEARNED if stretch.trained else None)
    return body.append(CLOSE) if open_ else body


def _say(place: Place) -> str:
    if not place.at:
        return f"{place.token}  does not occur"
    shown = ", ".join(map(str, place.at[:SHOWN_PLACES])) + (", ..." if len(place.at) > SHOWN_PLACES else "")
    if not place.trained:
        learned = "not learned"
    elif len(place.trained) == len(place.at):
        learned = "learned"
    else:
        learned = f"learned at {', '.join(map(str, place.trained[:SHOWN_PLACES]))}"
        learned += ", ..." if len(place.trained) > SHOWN_PLACES else ""
    return f"{place.token}  at {shown} (counted from 0): {learned}"
