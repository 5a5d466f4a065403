/* What the workload can be told to do; each case is one function, named on the command line. */
#pragma once

#define CASES(X) \
    X(calls) X(scattered) X(large) X(peek) X(partial) X(zero) X(half_close) X(seqpacket) X(errno_kept) \
    X(datagrams) X(datagram_reply) X(datagram_truncated) \
    X(failures) X(bad_memory) X(broken_pipe) \
    X(abstract_names) X(relative_path) X(symlinked_directory) X(longest_path) X(strange_path) \
    X(dups) X(dup_over) X(reused_number) X(closed_behind_libc) X(copy_closed_behind_libc) \
    X(close_all) X(close_all_by_range) X(descriptors_full) X(high_descriptors) \
    X(blocked_accept) X(blocked_read) X(blocked_recv) X(blocked_readv) X(blocked_recvmsg) X(blocked_write) \
    X(blocked_sendmsg) \
    X(threads) X(copies_at_once) X(unmapped) X(cancelled) X(signals) X(jumped_out) \
    X(forked) X(forked_among_threads) X(executed) X(activated) X(vforked) X(killed) X(killed_at_any_time) X(lingering) \
    X(filtered) X(many_connections) X(steps)

#define DECLARE(name) void case_##name(void);
CASES(DECLARE)
#undef DECLARE

/* The program's own file and arguments, for the cases that execute it again. */
extern char *program;
