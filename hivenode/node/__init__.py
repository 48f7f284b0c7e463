"""A node: one member of one hive, put together from services that know nothing of each other.

`services` is what it is made of, `building` makes the parts and hands each what it needs, `reactions` says what happens
when something happens, `candidacy` how it stands for coordinator, and `life` starts and stops it all.
"""

from hivenode.node.life import Node
from hivenode.node.ports import Ports

__all__ = ["Node", "Ports"]
