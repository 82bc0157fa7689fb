"""Compiles the MJML layout of all mails to HTML: `python -m adapters.build_mail`, after each change of the source."""

from pathlib import Path

SOURCE = Path(__file__).with_name("mail") / "layout.mjml"
COMPILED = SOURCE.with_suffix(".html")

_HEADER = "{#- Compiled from layout.mjml by adapters.build_mail; change the source and compile again. -#}\n"


def compile_layout(source: str) -> str:
    """Turn MJML into HTML that still holds the Jinja tags; refuses MJML that the compiler warns about."""
    import mrml  # needed at build time alone, so the running program does not depend on it

    # Without `fonts={}` the mail would load each font that the compiler knows by name from a server that sees readers.
    output = mrml.to_html(source, render_options=mrml.RenderOptions(disable_comments=True, fonts={}))
    if output.warnings:
        raise ValueError(f"the layout is not good MJML: {[warning.kind for warning in output.warnings]}")
    return f"{_HEADER}{output.content}\n"


def main() -> None:
    """Rewrite the compiled layout beside its source."""
    COMPILED.write_text(compile_layout(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
