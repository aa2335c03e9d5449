"""A check of a whole store: every reference is counted anew against the records.

Works on one snapshot, beside a running daemon or without one, and changes nothing.  Memory is
bounded: some dozens of bytes for each inode, blob and chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.operate.check_content import ContentCheck
from cafs.operate.check_engines import ADVICE, lacking
from cafs.operate.check_packs import PackCheck
from cafs.operate.check_tree import TreeCheck
from cafs.operate.finding import Finding, Findings
from cafs.view import View

OnStep = Callable[[str, int, int], None]
"""What is being checked, and how many steps of how many are done."""


class Check:
    """One check of one snapshot; iterate findings() once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._content = ContentCheck(view)
        self._tree = TreeCheck(view)
        self._packs = PackCheck(view, self._content.chunks)
        self.checked: dict[str, int] = {}
        """How many inodes, blobs, chunks and packs were looked at."""

    def findings(self, on_step: OnStep | None = None) -> Iterator[Finding]:
        """All that is not as it must be.  The order of the steps is the order of counting.

        A record or a page that cannot be read ends the check with a finding of kind
        ``index-damaged``: counts without it would only accuse the rest.
        """
        try:
            steps = self._steps()
            for done, (what, step) in enumerate(steps):
                if on_step is not None:
                    on_step(what, done, len(steps))
                yield from step()
        except IndexDamagedError as error:
            yield Finding("index-damaged", str(error), "restore the index with: cafs rebuild STORE")

    def _steps(self) -> list[tuple[str, Callable[[], Findings]]]:
        tree, content, packs = self._tree, self._content, self._packs
        return [
            ("inodes", self._load),
            ("names", tree.check_root),
            ("names", tree.check_entries),
            ("names", tree.check_loops),
            ("lists", tree.check_orphans),
            ("links", tree.check_symlinks),
            ("attributes", tree.check_xattrs),
            ("inodes", lambda: tree.check_inodes(content.blobs, content.size_of)),
            ("engines", content.check_engines),
            ("digests", content.check_blob_digests),
            ("digests", content.check_chunk_digests),
            ("lists", content.check_dead),
            ("lists", content.check_unhashed),
            ("recipes", content.check_recipe_rows),
            ("blobs", content.check_blobs),
            ("chunks", packs.check_chunks),
            ("chunks", packs.check_overlaps),
            ("packs", packs.check_packs),
            ("engines", self.check_copies),
            ("counters", self.check_counters),
        ]

    def _load(self) -> Findings:
        self.checked = {
            "blobs_count": self._content.load_blobs(),
            "chunks_count": self._content.load_chunks(),
            "inodes_count": self._tree.load(),
            "packs_count": sum(1 for _ in self._view.pack_table.items()),
        }
        return iter(())

    def check_copies(self) -> Findings:
        """What makes archives again is kept in the store."""
        for each in lacking(self._view):
            yield Finding("engine-copy", str(each), ADVICE)

    def check_counters(self) -> Findings:
        """The counters say what the records say; the next numbers are above all in use."""
        counters = self._view.counters
        noted = asdict(counters)
        wanted = self._tree.figures() | self._content.figures() | self._packs.figures()
        last = self._content.last() | {"next_ino": self._tree.last, "next_pack": self._packs.last}
        last["next_blob"] = max(last["next_blob"], self._tree.last_blob)
        wanted |= {name: number + 1 for name, number in last.items() if noted[name] <= number}
        wrong = {name: value for name, value in wanted.items() if noted[name] != value}
        if wrong:
            text = ", ".join(f"{name} {noted[name]}, not {value}" for name, value in wrong.items())
            yield Finding(
                "counters",
                f"the counters say: {text}",
                "they are put right",
                ((layout.META, COUNTERS_KEY, replace(counters, **wrong).encode()),),
            )
