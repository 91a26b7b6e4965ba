"""The tests of `intervals`: python -m unittest."""

import unittest

from intervals import covered, merge


class Merge(unittest.TestCase):
    def test_intervals_apart_stay_as_they_are(self) -> None:
        self.assertEqual(merge([(5, 6), (1, 2)]), [(1, 2), (5, 6)])

    def test_intervals_that_overlap_or_touch_become_one(self) -> None:
        self.assertEqual(merge([(1, 3), (2, 5), (5, 7)]), [(1, 7)])

    def test_an_interval_within_another_changes_nothing(self) -> None:
        self.assertEqual(merge([(1, 10), (2, 3)]), [(1, 10)])


class Covered(unittest.TestCase):
    def test_what_is_in_several_intervals_counts_once(self) -> None:
        self.assertEqual(covered([(0, 10), (1, 2), (20, 21)]), 11)


if __name__ == "__main__":
    unittest.main()
