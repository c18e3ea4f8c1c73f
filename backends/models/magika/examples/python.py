"""Count the words of a text, most frequent first."""

import collections
import sys


def count_words(lines):
    counter = collections.Counter()
    for line in lines:
        counter.update(word.strip(".,;:!?").lower() for word in line.split())
    return counter


if __name__ == "__main__":
    for word, count in count_words(sys.stdin).most_common(10):
        print(f"{count:6} {word}")
