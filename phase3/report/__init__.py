"""The reports made of one result: HTML, Markdown, JUnit XML, a CSV row, and the comparison of two."""

from phase3.report import words
from phase3.report.comparison import (
    Change,
    Comparison,
    compare,
    comparison_html,
    comparison_markdown,
    comparison_page,
)
from phase3.report.csv_row import append_row
from phase3.report.junit import junit
from phase3.report.markdown import markdown
from phase3.report.page import page

__all__ = [
    "Change",
    "Comparison",
    "append_row",
    "compare",
    "comparison_html",
    "comparison_markdown",
    "comparison_page",
    "junit",
    "markdown",
    "page",
    "words",
]
