// What the programs say, as src/records.rs reads it. Numbers are the machine's.
#pragma once

#include <linux/types.h>

enum kind {
    // A call has moved bytes; what is captured follows, or its beginning does.
    DATA = 1,
    // What follows of it.
    PIECE = 2,
    // A socket is met for the first time; `struct address`es follow, its own and its peer's.
    OPEN = 3,
    // A call on a socket has failed.
    FAIL = 4,
    // A receive says that nothing more will come.
    END_OF_FILE = 5,
    // A traced process has forked; `struct process` follows.
    FORK = 6,
    // A traced process has executed a program; `struct process` follows.
    EXEC = 7,
    // A traced process has ended.
    EXIT = 8,
};

struct record {
    // CLOCK_MONOTONIC, in nanoseconds.
    __u64 time;
    // Inode number of the socket.
    __u64 inode;
    // Bytes that traced processes moved over the socket in this direction before this call.
    __u64 before;
    __u32 pid;
    __u32 tid;
    // The thread as it sees itself (pid_namespaces(7)).
    __u32 own_tid;
    __s32 fd;
    // What the call returned. Of EXIT the status, as wait(2) has it.
    __s32 result;
    // How many bytes of it are to be captured.
    __u32 wanted;
    // Which of them come first in this record, and how many there are.
    __u32 at;
    __u32 captured;
    // Of the system call; -1: it is none that is known.
    __s16 call;
    __u8 kind;
    // 1: received, 2: sent.
    __u8 direction;
    // How many bytes there was room for, where the call says it in a word; 0: unknown.
    __u32 room;
};

struct address {
    // Of `path`; 0: it has no name.
    __u32 len;
    // As sun_path (unix(7)): an abstract name begins with a NUL.
    char path[108];
};

struct peers {
    __u64 peer_inode;
    __u32 peer_pid;
    __u32 peer_uid;
    __u32 peer_gid;
    // Inode number of its network namespace.
    __u32 network;
    __u32 type;
    // 10: it listens.
    __u32 state;
    struct address own;
    struct address peer;
};

struct process {
    __u32 parent;
    // As the process sees itself.
    __u32 own_pid;
    char comm[16];
    // Of EXEC, the program as the call was given it.
    __u32 len;
    char program[4096 - 28];
};

// What a lost record is filed under.
struct loss_key {
    __u32 pid;
    __u32 reason;
};

enum reason { RING_FULL = 1, UNREADABLE = 2, TOO_MANY = 3 };

struct loss {
    __u64 events;
    __u64 bytes;
    __u64 first;
    __u64 last;
};
