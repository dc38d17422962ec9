"""Formulas as MathML, which browsers draw by themselves: no script, no font, no download."""

from docutils import nodes
from latex2mathml.converter import convert


def mathml(node, **how):
    "The formula, with the space behind a logarithm that browsers leave out."
    return convert(node.astext(), **how).replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em" />')


def inline(writer, node):
    writer.body.append(mathml(node))
    raise nodes.SkipNode


def display(writer, node):
    formula = mathml(node, display="block")
    writer.body.append(f'<div class="math" tabindex="0" role="region" aria-label="formula">{formula}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
