"""Thirty small tasks that ship with the product, written for it.

A stranger without data can run a cycle and be told something, and every installation has a guard:
asked without their specification they are ordinary requests, whose answers must not get worse. They
are easy and few: good for a smoke test and a guard, not for a claim.

Each task is its text, a reference solution, and asserts of which the first is shown.
"""

from __future__ import annotations

import ast
from functools import cache
from textwrap import dedent

from improver.benchmarks.base import Task, parameters_of, shown_and_held


class Builtin:
    """The tasks of this module."""

    name = "builtin"

    def tasks(self) -> tuple[Task, ...]:
        """Return all tasks, always in the same order."""
        return _tasks()


@cache
def _tasks() -> tuple[Task, ...]:
    return tuple(_read(block) for block in _SOURCE.split("# ---\n") if block.strip())


def _read(block: str) -> Task:
    """Read a block: comment lines with the text, the reference, asserts."""
    block = dedent(block).strip()
    tree = ast.parse(block)
    lines = block.splitlines()
    text = " ".join(line[2:] for line in lines if line.startswith("# "))
    asserts = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assert)]
    code = [ast.unparse(node) for node in tree.body if not isinstance(node, ast.Assert)]
    reference = "\n\n\n".join(code) + "\n"
    # The function that is asked for comes last: helpers stand above it.
    name = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)][-1]
    spec = shown_and_held(asserts, name)
    types = parameters_of(reference, name)
    return Task(
        id=f"builtin/{name}",
        benchmark=Builtin.name,
        text=text,
        spec=spec.model_copy(update={"types": types}),
        reference=reference,
    )


_SOURCE = """
# Write a function that tells how many days a parcel waits: it arrives on day a and is
# collected on day b; a parcel collected before it arrives waits 0 days.
def parcel_wait(a, b):
    return max(0, b - a)
assert parcel_wait(3, 10) == 7
assert parcel_wait(10, 3) == 0
assert parcel_wait(4, 4) == 0
assert parcel_wait(-2, 5) == 7
# ---
# Write a function that takes a list of temperatures and returns the largest rise from one
# reading to the next. Return 0 when no reading is higher than the one before it.
def steepest_rise(readings):
    return max([0, *(b - a for a, b in zip(readings, readings[1:]))])
assert steepest_rise([11, 14, 12, 19, 20]) == 7
assert steepest_rise([9, 8, 7]) == 0
assert steepest_rise([]) == 0
assert steepest_rise([5]) == 0
assert steepest_rise([-4, -1]) == 3
# ---
# Write a function that shortens a title: words longer than four letters are cut to their
# first four letters and get a dot at the end; shorter words stay. Words are separated by spaces.
def shorten_title(title):
    return " ".join(w if len(w) <= 4 else w[:4] + "." for w in title.split())
assert shorten_title("a long journey home") == "a long jour. home"
assert shorten_title("") == ""
assert shorten_title("elephant") == "elep."
assert shorten_title("four five sixes") == "four five sixe."
# ---
# Write a function that returns the seats of a row that are still free. Seats are numbered
# from 1 to n; taken is a list of seat numbers. The result is sorted.
def free_seats(n, taken):
    return [s for s in range(1, n + 1) if s not in set(taken)]
assert free_seats(5, [2, 4]) == [1, 3, 5]
assert free_seats(3, []) == [1, 2, 3]
assert free_seats(2, [1, 2]) == []
assert free_seats(4, [4, 4, 9]) == [1, 2, 3]
# ---
# Write a function that counts the vowels of each word of a sentence and returns the counts
# as a list. Vowels are a, e, i, o, u in either case.
def vowels_per_word(sentence):
    return [sum(c in "aeiouAEIOU" for c in w) for w in sentence.split()]
assert vowels_per_word("Blue moon over Rhys") == [2, 2, 2, 0]
assert vowels_per_word("") == []
assert vowels_per_word("AEIOU b") == [5, 0]
assert vowels_per_word("queue") == [4]
# ---
# Write a function that adds up a shopping basket. The basket maps article names to pairs
# of price in cents and quantity. Return the total in cents.
def basket_total(basket):
    return sum(price * count for price, count in basket.values())
assert basket_total({"tea": (250, 2), "milk": (90, 1)}) == 590
assert basket_total({}) == 0
assert basket_total({"pen": (35, 10)}) == 350
assert basket_total({"a": (1, 0), "b": (7, 3)}) == 21
# ---
# Write a function that says which floor a lift is on after a ride. It starts on floor 0;
# the string has 'U' for one up and 'D' for one down. It never goes below floor 0: a 'D' there
# does nothing.
def lift_floor(ride):
    floor = 0
    for step in ride:
        floor = floor + 1 if step == "U" else max(0, floor - 1)
    return floor
assert lift_floor("UUDU") == 2
assert lift_floor("") == 0
assert lift_floor("DDU") == 1
assert lift_floor("UDDDUUU") == 3
# ---
# Write a function that returns the words of a text that occur exactly once, in the order in
# which they appear. Words are separated by spaces and compared as they are.
def words_seen_once(text):
    words = text.split()
    return [w for w in words if words.count(w) == 1]
assert words_seen_once("red blue red green") == ["blue", "green"]
assert words_seen_once("") == []
assert words_seen_once("a a a") == []
assert words_seen_once("A a") == ["A", "a"]
# ---
# Write a function that returns the middle part of a list: without its first k and its last
# k items. When nothing is left, return an empty list.
def middle_part(items, k):
    return items[k : len(items) - k] if len(items) > 2 * k else []
assert middle_part([1, 2, 3, 4, 5], 1) == [2, 3, 4]
assert middle_part([1, 2, 3], 0) == [1, 2, 3]
assert middle_part([1, 2, 3, 4], 2) == []
assert middle_part([1, 2], 5) == []
# ---
# Write a function that turns a number of seconds into text of the form h:mm:ss.
def clock_text(seconds):
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
assert clock_text(3725) == "1:02:05"
assert clock_text(0) == "0:00:00"
assert clock_text(59) == "0:00:59"
assert clock_text(36000) == "10:00:00"
# ---
# Write a function that finds the first position at which two strings differ. Return -1 when
# they are equal; when one is the beginning of the other, return the length of the shorter one.
def first_difference(a, b):
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return -1 if len(a) == len(b) else min(len(a), len(b))
assert first_difference("planet", "plaque") == 3
assert first_difference("same", "same") == -1
assert first_difference("car", "carpet") == 3
assert first_difference("", "x") == 0
# ---
# Write a function that groups names by their first letter, in upper case. Return a dictionary
# from letter to the list of names in the given order.
def index_of_names(names):
    index = {}
    for name in names:
        index.setdefault(name[0].upper(), []).append(name)
    return index
assert index_of_names(["Mia", "ben", "max"]) == {"M": ["Mia", "max"], "B": ["ben"]}
assert index_of_names([]) == {}
assert index_of_names(["z"]) == {"Z": ["z"]}
assert index_of_names(["al", "Al", "bo"]) == {"A": ["al", "Al"], "B": ["bo"]}
# ---
# Write a function that checks whether a list of numbers goes up and down in turn: each number
# is alternately larger and smaller than the one before it, in either order. Lists with fewer
# than two numbers count as such; equal neighbours never do.
def is_zigzag(numbers):
    steps = [b - a for a, b in zip(numbers, numbers[1:])]
    return all(s != 0 for s in steps) and all(a * b < 0 for a, b in zip(steps, steps[1:]))
assert is_zigzag([1, 5, 2, 8]) is True
assert is_zigzag([1, 2, 3]) is False
assert is_zigzag([4, 4]) is False
assert is_zigzag([7]) is True
assert is_zigzag([9, 1, 9, 1]) is True
# ---
# Write a function that removes from a list every number that is smaller than the number
# right before it in the original list.
def drop_descents(numbers):
    return [n for i, n in enumerate(numbers) if i == 0 or n >= numbers[i - 1]]
assert drop_descents([3, 1, 2, 2, 0]) == [3, 2, 2]
assert drop_descents([]) == []
assert drop_descents([5, 4, 3]) == [5]
assert drop_descents([1, 2, 3]) == [1, 2, 3]
# ---
# Write a function that returns the price of a taxi ride in cents: 390 to begin with, 200 for
# each kilometre of the first ten, and 150 for each further one.
def taxi_price(kilometres):
    return 390 + 200 * min(kilometres, 10) + 150 * max(0, kilometres - 10)
assert taxi_price(3) == 990
assert taxi_price(0) == 390
assert taxi_price(10) == 2390
assert taxi_price(12) == 2690
# ---
# Write a function that reads a text of the form "key=value;key=value" and returns it as a
# dictionary of strings. An empty text gives an empty dictionary.
def read_pairs(text):
    return dict(part.split("=", 1) for part in text.split(";")) if text else {}
assert read_pairs("a=1;b=two") == {"a": "1", "b": "two"}
assert read_pairs("") == {}
assert read_pairs("k=") == {"k": ""}
assert read_pairs("x=y=z") == {"x": "y=z"}
# ---
# Write a function that returns the lengths of all runs of equal neighbours in a list.
def run_sizes(items):
    sizes = []
    for i, item in enumerate(items):
        if i and item == items[i - 1]:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes
assert run_sizes([7, 7, 1, 1, 1, 7]) == [2, 3, 1]
assert run_sizes([]) == []
assert run_sizes(["a"]) == [1]
assert run_sizes([0, False, 1]) == [2, 1]
# ---
# Write a function that says how many coins are needed to pay an amount in cents exactly, with
# as few coins as possible, out of coins of 50, 20, 10, 5, 2 and 1 cents.
def fewest_coins(amount):
    count = 0
    for coin in (50, 20, 10, 5, 2, 1):
        count += amount // coin
        amount %= coin
    return count
assert fewest_coins(88) == 6
assert fewest_coins(0) == 0
assert fewest_coins(50) == 1
assert fewest_coins(99) == 6
assert fewest_coins(4) == 2
# ---
# Write a function that takes a grid as a list of rows and returns the sum of the numbers on
# its border. Each cell counts once.
def border_sum(grid):
    return sum(
        value
        for i, row in enumerate(grid)
        for j, value in enumerate(row)
        if i in (0, len(grid) - 1) or j in (0, len(row) - 1)
    )
assert border_sum([[1, 2, 3], [4, 5, 6], [7, 8, 9]]) == 40
assert border_sum([[5]]) == 5
assert border_sum([[1, 2], [3, 4]]) == 10
assert border_sum([[1, 1, 1, 1]]) == 4
# ---
# Write a function that hides all letters of a word except its first and its last one behind
# stars. Words of one or two letters stay as they are.
def mask_word(word):
    return word if len(word) <= 2 else word[0] + "*" * (len(word) - 2) + word[-1]
assert mask_word("secret") == "s****t"
assert mask_word("at") == "at"
assert mask_word("") == ""
assert mask_word("cat") == "c*t"
# ---
# Write a function that merges two lists by taking items in turn, beginning with the first
# list. When one list ends, the rest of the other follows.
def take_turns(first, second):
    merged = []
    for i in range(max(len(first), len(second))):
        merged += first[i : i + 1] + second[i : i + 1]
    return merged
assert take_turns([1, 2, 3], [9, 8]) == [1, 9, 2, 8, 3]
assert take_turns([], [1, 2]) == [1, 2]
assert take_turns(["a"], []) == ["a"]
assert take_turns([1], [2, 3, 4]) == [1, 2, 3, 4]
# ---
# Write a function that returns the number whose digits are those of n in reverse. The sign
# stays; leading zeros of the result vanish.
def mirror_number(n):
    mirrored = int(str(abs(n))[::-1])
    return -mirrored if n < 0 else mirrored
assert mirror_number(1240) == 421
assert mirror_number(-53) == -35
assert mirror_number(0) == 0
assert mirror_number(7) == 7
# ---
# Write a function that returns the names of all pupils whose average mark is at least the
# given limit, sorted by name. Marks map a name to a list of marks, which is never empty.
def passed_pupils(marks, limit):
    return sorted(n for n, m in marks.items() if sum(m) / len(m) >= limit)
assert passed_pupils({"Zoe": [4, 6], "Ali": [5], "Kim": [1, 2]}, 5) == ["Ali", "Zoe"]
assert passed_pupils({}, 3) == []
assert passed_pupils({"A": [2, 3]}, 2.5) == ["A"]
assert passed_pupils({"A": [2, 3]}, 2.6) == []
# ---
# Write a function that finds how long the longest stretch of days without rain was. The list
# holds the rain of each day in millimetres.
def longest_dry_spell(rain):
    best = now = 0
    for amount in rain:
        now = now + 1 if amount == 0 else 0
        best = max(best, now)
    return best
assert longest_dry_spell([0, 0, 3, 0, 0, 0, 1]) == 3
assert longest_dry_spell([]) == 0
assert longest_dry_spell([2, 5]) == 0
assert longest_dry_spell([0, 0]) == 2
# ---
# Write a function that tells whether a password is acceptable: at least eight characters,
# at least one digit, and at least one letter.
def good_password(text):
    return len(text) >= 8 and any(c.isdigit() for c in text) and any(c.isalpha() for c in text)
assert good_password("winter2026") is True
assert good_password("12345678") is False
assert good_password("ab1") is False
assert good_password("onlyletters") is False
assert good_password("a1b2c3d4") is True
# ---
# Write a function that returns all pairs of different positions (i, j) with i < j at which a
# list holds two numbers that differ by exactly d.
def pairs_apart(numbers, d):
    places = range(len(numbers))
    return [(i, j) for i in places for j in places if i < j and abs(numbers[i] - numbers[j]) == d]
assert pairs_apart([1, 4, 7], 3) == [(0, 1), (1, 2)]
assert pairs_apart([], 1) == []
assert pairs_apart([2, 2, 2], 0) == [(0, 1), (0, 2), (1, 2)]
assert pairs_apart([5, 1], 4) == [(0, 1)]
# ---
# Write a function that writes a list of names as people do: "A", "A and B", "A, B and C".
# An empty list gives "nobody".
def list_people(names):
    if not names:
        return "nobody"
    if len(names) == 1:
        return names[0]
    return ", ".join(names[:-1]) + " and " + names[-1]
assert list_people(["Ann", "Bob", "Cy"]) == "Ann, Bob and Cy"
assert list_people([]) == "nobody"
assert list_people(["Ann"]) == "Ann"
assert list_people(["Ann", "Bob"]) == "Ann and Bob"
# ---
# Write a function that turns a list of hours of work, one for each day, into the overtime of
# each day: what exceeds eight hours, at least 0.
def overtime(hours):
    return [max(0, h - 8) for h in hours]
assert overtime([9, 8, 4, 11]) == [1, 0, 0, 3]
assert overtime([]) == []
assert overtime([8.5]) == [0.5]
assert overtime([0, 24]) == [0, 16]
# ---
# Write a function that moves every character of a text k places to the left in a circle, so
# that the first k characters come to the end. k may be larger than the text is long.
def turn_left(text, k):
    return text[k % len(text) :] + text[: k % len(text)] if text else text
assert turn_left("garden", 2) == "rdenga"
assert turn_left("abc", 0) == "abc"
assert turn_left("abc", 4) == "bca"
assert turn_left("", 3) == ""
# ---
# Write a function that returns the deepest nesting of a list: a flat or empty list has depth
# 1, a list that holds a flat list has depth 2, and so on.
def list_depth(items):
    return 1 + max([0, *(list_depth(i) for i in items if isinstance(i, list))])
assert list_depth([1, [2, [3]], 4]) == 3
assert list_depth([]) == 1
assert list_depth([[]]) == 2
assert list_depth([1, 2]) == 1
"""
