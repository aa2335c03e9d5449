"""How far threads of this process may stand back for others."""

from __future__ import annotations

import threading
from functools import cache

from cafs import _digest


@cache
def may_idle() -> bool:
    """Whether a thread may enter the kernel's idle class and leave it again (sched(7)).

    Leaving it takes CAP_SYS_NICE, which root has but not in every container.
    """
    answers: list[bool] = []
    # One that ends: if it may not leave the class it stays in it.
    thread = threading.Thread(target=lambda: answers.append(_digest.may_idle()))
    thread.start()
    thread.join()
    return answers == [True]
