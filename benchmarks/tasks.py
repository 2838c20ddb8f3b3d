"""The classifier's time: the median for prompts of 2,000 characters, of several kinds.

    python -m benchmarks.tasks

What lies in the middle of a prompt is only looked at for the syntax of code, so the time grows with the
ends of the prompt up to 500 characters, and then with the patterns of code.
"""

# ruff: noqa: RUF001 - Russian and Chinese prompts

from __future__ import annotations

import statistics
import time

from inference.selection.tasks import classify

CHARACTERS = 2000
RUNS = 200
KINDS = {
    "English prose": "Summarize the following article. The council met on Monday to discuss the new bridge. ",
    "German prose": "Fasse den folgenden Artikel zusammen. Der Stadtrat hat am Montag lange beraten. ",
    "Russian prose": "Переведи на английский. Старый дом на краю деревни стоял пустым с прошлой зимы. ",
    "Chinese prose": "请把下面的文章翻译成英文。那天晚上，雨下得很大，老人独自走在回家的路上。",
    "Hindi prose": "इस लेख का सारांश लिखो। शहर में नया पुल बन रहा है और लोग बहुत खुश हैं। ",
    "code": "def add(first, second):\n    return first + second\n\nfor item in items:\n    print(item)\n\n",
    "one long word": "a",
    "punctuation": "?! ... ",
}


def main() -> None:
    """Print the median of every kind in milliseconds."""
    for kind, piece in KINDS.items():
        text = (piece * CHARACTERS)[:CHARACTERS]
        classify(text)
        print(f"{kind:16} {median_ms(text):6.2f} ms  {classify(text).value}")


def median_ms(text: str) -> float:
    """The median time of one classification."""
    times_s = []
    for _ in range(RUNS):
        start_s = time.perf_counter()
        classify(text)
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s) * 1000


if __name__ == "__main__":
    main()
