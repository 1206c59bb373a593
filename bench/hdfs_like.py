"""A stream of lines like those of a distributed file system's log, with planted anomalies: blocks that are written,
read, replicated and deleted, many at once, their lines interleaved.

The messages are those that Hadoop 0.18 writes. The courses, and how often each is taken, were made by eye after public
sequences of the HDFS log of Xu et al. (2009, "Detecting large-scale system problems by mining console logs"): 2.9 % of
blocks are anomalous, nearly half of these because their writing broke off, a third because they were deleted twice or
while unknown. No line of that log is in here. What a detector reaches on this says little about the real one.
"""

import random
from collections.abc import Iterator

BLOCKS = "dfs.FSNamesystem: BLOCK* "
NODE = "dfs.DataNode$"
MESSAGES = {
    "receiving": NODE + "DataXceiver: Receiving block {b} src: /{ip}:{port} dest: /{ip2}:50010",
    "allocate": BLOCKS + "NameSystem.allocateBlock: /user/root/rand/_temporary/_task_2008_{task}/part-{task}. {b}",
    "responder": NODE + "PacketResponder: PacketResponder {n} for block {b} terminating",
    "received": NODE + "PacketResponder: Received block {b} of size {size} from /{ip}",
    "added": BLOCKS + "NameSystem.addStoredBlock: blockMap updated: {ip}:50010 is added to {b} size {size}",
    "invalid": BLOCKS + "NameSystem.delete: {b} is added to invalidSet of {ip}:50010",
    "deleting": "dfs.FSDataset: Deleting block {b} file /mnt/hadoop/dfs/data/current/subdir{n}/{b}",
    "verified": "dfs.DataBlockScanner: Verification succeeded for {b}",
    "served": NODE + "DataXceiver: {ip}:50010 Served block {b} to /{ip2}",
    "unserved": NODE + "DataXceiver: {ip}:50010:Got exception while serving {b} to /{ip2}:",
    "ask": BLOCKS + "ask {ip}:50010 to replicate {b} to datanode(s) {ip2}:50010",
    "transfer": "dfs.DataNode: {ip}:50010 Starting thread to transfer block {b} to {ip2}:50010",
    "copied": NODE + "DataXceiver: Received block {b} src: /{ip}:{port} dest: /{ip2}:50010 of size {size}",
    "transmitted": NODE + "DataTransfer: {ip}:50010:Transmitted block {b} to /{ip2}:50010",
    "unknown": "dfs.FSDataset: Unexpected error trying to delete block {b}. BlockInfo not found in volumeMap.",
    "orphan": BLOCKS + "NameSystem.addStoredBlock: addStoredBlock request received for {b} on {ip}:50010 size {size} "
    "But it does not belong to any file.",
    "redundant": BLOCKS + "NameSystem.addStoredBlock: Redundant addStoredBlock request received for {b} on {ip}:50010 "
    "size {size}",
    "empty": NODE + "DataXceiver: Receiving empty packet for block {b}",
    "write failed": NODE
    + "DataXceiver: writeBlock {b} received exception java.io.IOException: Could not read from stream",
    "receive failed": NODE + "BlockReceiver: Exception in receiveBlock for block {b} java.io.EOFException",
    "transfer failed": NODE + "DataTransfer: {ip}:50010:Failed to transfer {b} to {ip2}:50010 got java.io.IOException: "
    "Connection reset by peer",
    "interrupted": NODE + "PacketResponder: PacketResponder {n} for block {b} Interrupted.",
}
WARNED = {"unserved", "unknown", "orphan", "redundant", "write failed", "receive failed", "transfer failed"}
DELETED = ["invalid"] * 3 + ["deleting"] * 3
READS = (["unserved", "unserved", "served"], ["unserved", "served", "unserved", "verified"], ["served"],
         ["served", "verified"], ["unserved", "served", "unserved"], ["served", "verified", "verified"])  # fmt: skip


def ordinary(r: random.Random) -> list[str]:
    """What happens to a block when all is well."""
    first = r.choices(range(4), [0.27, 0.2, 0.18, 0.35])[0]
    course = ["receiving"] * 3
    course.insert(first, "allocate")
    course += _stored(r, first == 0)
    chance = r.random()
    if chance < 0.27:  # still there when the log ends
        extra = r.random()
        if extra < 0.02:
            course.append("verified")
        elif extra < 0.03:
            course += [event for _ in range(r.randint(1, 3)) for event in _replicated(r)]
        return course
    if 0.72 < chance < 0.77:
        course.append("verified")
    elif 0.77 <= chance < 0.82:
        course += r.choice(READS)
    elif 0.82 <= chance < 0.998:
        for _ in range(r.randint(1, 4)):
            course += r.choice((["served", "served", "unserved"], ["served", "unserved", "served"], ["served"] * 3))
    elif chance >= 0.998:
        course += ["unserved"] * r.randint(6, 16)
    return course + DELETED


def anomalous(r: random.Random) -> list[str]:
    """What happens to a block when something goes wrong."""
    chance = r.random()
    if chance < 0.43:  # the writing broke off
        course = ["receiving"] * r.randint(1, 2)
        course.insert(r.randint(0, len(course)), "allocate")
        return course
    course = ordinary(r)
    while course[-1] != "deleting" or "ask" in course:
        course = ordinary(r)
    if chance < 0.70:
        course.insert(r.randint(len(course) - 2, len(course)), "unknown")
    elif chance < 0.78:
        course[-1:-1] = ["orphan", "added"]
    elif chance < 0.90:  # replicated, and then one more or one less is deleted
        ends = (DELETED, ["invalid"] * 4 + ["deleting"] * 4, ["invalid"] * 4 + ["unknown"] + ["deleting"] * 3)
        course[-6:] = _replicated(r) + r.choice(ends)
    elif chance < 0.94:
        course.insert(course.index("added"), "redundant")
    elif chance < 0.98:
        course = [e for event in course for e in (["empty", event] if event == "responder" else [event])]
    else:
        course = r.choice((
            [*course[:4], "write failed", "responder", "receive failed", "write failed", "interrupted"],
            [*course[:13], "ask", "transfer", "added", "transfer failed"],
            [*course[:10], "orphan", "orphan", "added", "added", "orphan", "deleting", "deleting"],
        ))  # fmt: skip
    return course


def stream(n_blocks: int, seed: int, share: float = 0.029, n_open: int = 150) -> Iterator[tuple[bytes, bytes, bool]]:
    """Lines, the block each is about, and whether that block is anomalous."""
    r = random.Random(seed)
    running: list[tuple[bytes, bool, list[str]]] = []
    begun, second = 0, 0
    while running or begun < n_blocks:
        while len(running) < n_open and begun < n_blocks:
            begun, wrong = begun + 1, r.random() < share
            block = b"blk_%d" % r.randrange(-(1 << 63), 1 << 63)
            running.append((block, wrong, anomalous(r) if wrong else ordinary(r)))
        at = r.randrange(len(running))
        block, wrong, course = running[at]
        event = course.pop(0)
        if not course:
            running.pop(at)
        second += r.random() < 0.3
        yield _line(r, block, event, second), block, wrong


def _line(r: random.Random, block: bytes, event: str, second: int) -> bytes:
    clock = f"{second // 3600 % 24:02d}{second // 60 % 60:02d}{second % 60:02d}"
    ips = [f"10.251.{r.randrange(30, 220)}.{r.randrange(1, 255)}" for _ in range(2)]
    text = MESSAGES[event].format(
        b=block.decode(), ip=ips[0], ip2=ips[1], port=r.randrange(30000, 60000), n=r.randrange(3),
        size=r.choice((67108864, 67108864, r.randrange(1 << 26))), task=f"{r.randrange(10**4)}_m_{r.randrange(10**6)}",
    )  # fmt: skip
    level = "WARN" if event in WARNED else "INFO"
    return f"0811{9 + second // 86400:02d} {clock} {r.randrange(13, 30000)} {level} {text}\n".encode()


def _stored(r: random.Random, early: bool) -> list[str]:
    chance = r.random()
    written, added = ["responder", "received"] * 3, ["added"] * 3
    if chance < (0.35 if early else 0.65):
        return written + added
    if chance < (0.75 if early else 0.68):
        return added + written
    course: list[str] = []
    while written or added:
        course.append(written.pop(0) if written and (not added or r.random() < 0.66) else added.pop(0))
    if r.random() < 0.04:
        at = course.index("received")
        course[0], course[at] = course[at], course[0]
    return course


def _replicated(r: random.Random) -> list[str]:
    a, b = ["transfer", "receiving"], ["copied", "transmitted"]
    r.shuffle(a)
    r.shuffle(b)
    return ["ask", *a, *b, "added", "added", "deleting"]
