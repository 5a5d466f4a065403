// Sees AF_UNIX sockets of the processes in `traced`: tracepoints within the kernel's sending and receiving, behind which the
// program's bytes are still where it has put them, or are there already. Changes nothing. src/lib.rs loads it.
#include "kernel.h"
#include "records.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

// The kernel lends some helpers only to programs whose licence says GPL.
char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define AF_UNIX 1
#define SOCK_DGRAM 2
#define MSG_PEEK 2
#define RECEIVED 1
#define SENT 2
// thread_info.status: a 32-bit system call, whose numbers are others'.
#define TS_COMPAT 2
// pid_type
#define PIDTYPE_TGID 1
// Errors of less interest than they are frequent: nothing there yet, or to be called again.
#define EINTR 4
#define EAGAIN 11
// Those that programs never see begin here.
#define ERESTARTSYS 512
// Records take one of these many bytes behind their head, for the verifier wants a constant; more is split.
#define LARGEST 65536
// Of one call: 4 GiB in the largest records, and what Linux takes of iovecs (UIO_MAXIOV).
#define MAX_PIECES 65536
#define MAX_IOVECS 1024

// System calls, whose numbers are x86_64's.
enum {
    READ = 0,
    WRITE = 1,
    READV = 19,
    WRITEV = 20,
    SENDTO = 44,
    RECVFROM = 45,
    SENDMSG = 46,
    RECVMSG = 47,
    PREADV2 = 327,
    PWRITEV2 = 328,
};

// Set by the loader.
const volatile __u64 max_bytes = ~0ull;
const volatile __u32 follow_children = 1;
// When so many bytes are waiting, the reader is woken. It looks by itself, too.
const volatile __u64 wake_at = 64 << 10;

// What a process is in `traced`.
enum { TRACED = 1, STARTER = 2 };

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 8 << 20);
} records SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 65536);
    __type(key, __u32);
    __type(value, __u32);
} traced SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 16384);
    __type(key, struct loss_key);
    __type(value, struct loss);
} losses SEC(".maps");

struct seen {
    __u64 inode;
    // Received and sent.
    __u64 moved[2];
    __u32 is_open;
    __u32 is_at_end;
};

struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct seen);
} sockets SEC(".maps");

// A call, while its bytes are captured.
struct call {
    struct record head;
    // What comes next: where, and how much.
    __u64 from;
    __u32 left;
    // iovecs that are still to come.
    __u32 iovecs;
    __u64 iovec;
    // Bytes taken so far.
    __u32 taken;
    bool failed;
};

static __always_inline void lose(__u32 pid, __u32 reason, __u64 events, __u64 bytes) {
    struct loss_key key = {pid, reason};
    __u64 now = bpf_ktime_get_ns();
    struct loss *loss = bpf_map_lookup_elem(&losses, &key);
    if (!loss) {
        struct loss none = {.first = now};
        bpf_map_update_elem(&losses, &key, &none, BPF_NOEXIST);
        loss = bpf_map_lookup_elem(&losses, &key);
        if (!loss)
            return;
    }
    __sync_fetch_and_add(&loss->events, events);
    __sync_fetch_and_add(&loss->bytes, bytes);
    loss->last = now;
}

// Whether to wake the reader with a record of so many bytes: once, by that with which there is enough. A reader that is behind
// does not sleep, and a wake-up that is missed is made good when it looks by itself.
static __always_inline __u64 wake(__u64 size) {
    __u64 waiting = bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA);
    return waiting >= wake_at && waiting < wake_at + size ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

// What follows the head where it is one of these sizes at most.
#define PUT(SIZE)                                                                                                      \
    if (size <= (SIZE)) {                                                                                              \
        struct record *record = bpf_ringbuf_reserve(&records, sizeof(*record) + (SIZE), 0);                            \
        if (!record)                                                                                                   \
            return RING_FULL;                                                                                          \
        *record = call->head;                                                                                          \
        if (size && bpf_probe_read_user(record + 1, size, (void *)call->from)) {                                       \
            bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);                                                             \
            return UNREADABLE;                                                                                         \
        }                                                                                                              \
        bpf_ringbuf_submit(record, wake(sizeof(*record) + (SIZE)));                                                    \
        return 0;                                                                                                      \
    }

// Hands over `len` bytes from `call->from` on; returns why not. Not static, so that the verifier looks at it by itself, once.
__noinline int put(struct call *call, __u32 len) {
    __u64 size = len;
    if (!call)
        return UNREADABLE;
    // So that the verifier follows it.
    asm volatile("" : "+r"(size));
    call->head.captured = len;
    PUT(64)
    PUT(128)
    PUT(256)
    PUT(512)
    PUT(1024)
    PUT(2048)
    PUT(4096)
    PUT(8192)
    PUT(16384)
    PUT(32768)
    PUT(LARGEST)
    return UNREADABLE;
}

// One record of the call.
static __always_inline bool piece(struct call *call, __u32 len) {
    int reason = put(call, len);
    if (reason) {
        call->failed = true;
        // Of a call that is on record its event says what is missing.
        bool is_new = call->head.kind == DATA;
        lose(call->head.pid, reason, is_new, is_new ? call->head.result : 0);
        return false;
    }
    call->head.kind = PIECE;
    call->head.at += len;
    call->taken += len;
    return true;
}

static long next_piece(__u32 n, void *context) {
    struct call *call = context;
    __u32 len = call->left;
    if (!len)
        return 1;
    if (len > LARGEST)
        len = LARGEST;
    if (!piece(call, len))
        return 1;
    call->from += len;
    call->left -= len;
    return 0;
}

static __always_inline void capture(struct call *call, __u64 from, __u32 len) {
    call->from = from;
    if (len <= LARGEST) {
        piece(call, len);
        return;
    }
    call->left = len;
    bpf_loop(MAX_PIECES, next_piece, call, 0);
}

static long next_iovec(__u32 n, void *context) {
    struct call *call = context;
    struct iovec iovec;
    if (n >= call->iovecs || call->failed || call->taken >= call->head.wanted)
        return 1;
    if (bpf_probe_read_user(&iovec, sizeof(iovec), (void *)(call->iovec + n * sizeof(iovec)))) {
        call->failed = true;
        return 1;
    }
    __u32 room = call->head.wanted - call->taken;
    __u32 len = iovec.len < room ? iovec.len : room;
    if (!len)
        return 0;
    call->from = iovec.base;
    call->left = len;
    if (len <= LARGEST)
        piece(call, len);
    else
        bpf_loop(MAX_PIECES, next_piece, call, 0);
    return 0;
}

// A message whose bytes cannot be had goes on record without them.
static __noinline void without_bytes(struct call *call) {
    call->head.wanted = 0;
    piece(call, 0);
}

static __noinline void take(struct call *call, struct pt_regs *regs, bool is_compat) {
    __u64 address = regs->si, len = regs->dx;
    // MSG_TRUNC may return more than there was room for.
    __u64 wanted = call->head.result;
    if (is_compat)
        call->head.call = -1;
    switch (call->head.call) {
    case READ:
    case WRITE:
    case SENDTO:
    case RECVFROM:
        call->head.room = len < ~0u ? len : ~0u;
        if (wanted > len)
            wanted = len;
        if (wanted > max_bytes)
            wanted = max_bytes;
        call->head.wanted = wanted;
        capture(call, address, wanted);
        return;
    case SENDMSG:
    case RECVMSG: {
        struct user_msghdr message;
        if (bpf_probe_read_user(&message, sizeof(message), (void *)address))
            return without_bytes(call);
        address = message.iov;
        len = message.iov_len;
        break;
    }
    case READV:
    case WRITEV:
    case PREADV2:
    case PWRITEV2:
        break;
    default:
        return without_bytes(call);
    }
    if (wanted > max_bytes)
        wanted = max_bytes;
    call->head.wanted = wanted;
    if (!wanted)
        return without_bytes(call);
    call->iovec = address;
    call->iovecs = len;
    bpf_loop(MAX_IOVECS, next_iovec, call, 0);
    // Not one byte of it could be had.
    if (call->head.kind == DATA && !call->failed)
        without_bytes(call);
}

// Its number in the innermost namespace, which is how the process sees it.
static __always_inline __u32 own_number(struct pid *pid, __u32 outermost) {
    __u32 level = pid->level;
    int number = 0;
    if (!level)
        return outermost;
    void *at = (void *)pid + bpf_core_field_offset(struct pid, numbers) + level * bpf_core_type_size(struct upid);
    bpf_probe_read_kernel(&number, sizeof(number), at + bpf_core_field_offset(struct upid, nr));
    return number;
}

static __always_inline __u32 outermost_number(struct pid *pid) {
    int number = 0;
    if (pid)
        bpf_probe_read_kernel(&number, sizeof(number), (void *)pid + bpf_core_field_offset(struct pid, numbers) +
                                                           bpf_core_field_offset(struct upid, nr));
    return number;
}

static __always_inline void name_of(struct sock *sock, struct address *name) {
    struct unix_address *address = BPF_CORE_READ((struct unix_sock *)sock, addr);
    name->len = 0;
    if (!address)
        return;
    __u32 len = BPF_CORE_READ(address, len) - sizeof(__u16);
    if (len > sizeof(name->path))
        return;
    name->len = len;
    void *at = (void *)address + bpf_core_field_offset(struct unix_address, name) + sizeof(__u16);
    bpf_probe_read_kernel(name->path, sizeof(name->path), at);
}

static __always_inline void describe(struct sock *sock, struct peers *said) {
    struct sock *peer = BPF_CORE_READ((struct unix_sock *)sock, peer);
    said->type = BPF_CORE_READ(sock, sk_type);
    said->state = BPF_CORE_READ(sock, __sk_common.skc_state);
    said->peer_pid = outermost_number(BPF_CORE_READ(sock, sk_peer_pid));
    said->peer_uid = BPF_CORE_READ(sock, sk_peer_cred, euid.val);
    said->peer_gid = BPF_CORE_READ(sock, sk_peer_cred, egid.val);
    said->network = BPF_CORE_READ(sock, __sk_common.skc_net.net, ns.inum);
    said->peer_inode = 0;
    said->peer.len = 0;
    name_of(sock, &said->own);
    if (peer) {
        said->peer_inode = BPF_CORE_READ(peer, sk_socket, file, f_inode, i_ino);
        name_of(peer, &said->peer);
    }
}

// A socket is met for the first time.
static __noinline int open(struct call *call, struct sock *sock) {
    struct {
        struct record record;
        struct peers peers;
    } *said = bpf_ringbuf_reserve(&records, sizeof(*said), 0);
    if (!said) {
        // The next call says it.
        lose(call->head.pid, RING_FULL, 1, 0);
        return RING_FULL;
    }
    said->record = call->head;
    said->record.kind = OPEN;
    describe(sock, &said->peers);
    bpf_ringbuf_submit(said, wake(sizeof(*said)));
    return 0;
}

static __always_inline int moved(struct sock *sock, int result, int flags, __u8 direction) {
    if (sock->__sk_common.skc_family != AF_UNIX || flags & MSG_PEEK)
        return 0;
    __u64 ids = bpf_get_current_pid_tgid();
    __u32 pid = ids >> 32;
    __u32 *role = bpf_map_lookup_elem(&traced, &pid);
    if (!role || *role != TRACED || result == -EAGAIN || result == -EINTR || result <= -ERESTARTSYS)
        return 0;
    struct task_struct *task = bpf_get_current_task_btf();
    struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
    struct seen *seen = bpf_sk_storage_get(&sockets, sock, 0, BPF_SK_STORAGE_GET_F_CREATE);
    struct call call = {};
    if (!seen) {
        lose(pid, RING_FULL, 1, result > 0 ? result : 0);
        return 0;
    }
    if (!seen->inode)
        seen->inode = sock->sk_socket->file->f_inode->i_ino;
    call.head.time = bpf_ktime_get_ns();
    call.head.inode = seen->inode;
    call.head.pid = pid;
    call.head.tid = ids;
    call.head.own_tid = own_number(task->thread_pid, ids);
    call.head.fd = regs->di;
    call.head.call = regs->orig_ax;
    call.head.result = result;
    call.head.direction = direction;
    if (!seen->is_open && !open(&call, sock))
        seen->is_open = 1;
    if (result > 0 || (result == 0 && sock->sk_type == SOCK_DGRAM)) {
        call.head.kind = DATA;
        call.head.before = __sync_fetch_and_add(&seen->moved[direction - 1], result);
        take(&call, regs, task->thread_info.status & TS_COMPAT);
        return 0;
    }
    if (result == 0) {
        // Sends of nothing, and receives that asked for nothing.
        if (direction == SENT || seen->is_at_end || ((call.head.call == READ || call.head.call == RECVFROM) && !regs->dx))
            return 0;
        seen->is_at_end = 1;
    }
    call.head.kind = result ? FAIL : END_OF_FILE;
    piece(&call, 0);
    return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sent, struct sock *sock, int result, int flags) {
    return moved(sock, result, 0, SENT);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(received, struct sock *sock, int result, int flags) {
    return moved(sock, result, flags, RECEIVED);
}

static __always_inline void introduce(struct task_struct *task, __u8 kind, const char *program) {
    struct {
        struct record record;
        struct process process;
    } *said = bpf_ringbuf_reserve(&records, sizeof(*said), 0);
    if (!said) {
        lose(task->tgid, RING_FULL, 1, 0);
        return;
    }
    struct record head = {.time = bpf_ktime_get_ns(), .pid = task->tgid, .tid = task->pid, .fd = -1, .kind = kind};
    head.own_tid = own_number(task->thread_pid, task->pid);
    said->record = head;
    said->process.parent = task->real_parent->tgid;
    said->process.own_pid = own_number(task->group_leader->thread_pid, task->tgid);
    bpf_probe_read_kernel(said->process.comm, sizeof(said->process.comm), task->comm);
    said->process.len = 0;
    if (program) {
        long len = bpf_probe_read_kernel_str(said->process.program, sizeof(said->process.program), program);
        // Less its NUL.
        said->process.len = len > 0 ? len - 1 : 0;
    }
    bpf_ringbuf_submit(said, wake(sizeof(*said)));
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(forked, struct task_struct *parent, struct task_struct *child) {
    __u32 from = parent->tgid, to = child->tgid, role = TRACED;
    if (from == to)
        return 0;
    __u32 *known = bpf_map_lookup_elem(&traced, &from);
    if (!known)
        return 0;
    bool is_first = *known == STARTER;
    if (!is_first && !follow_children)
        return 0;
    if (bpf_map_update_elem(&traced, &to, &role, BPF_ANY)) {
        lose(to, TOO_MANY, 1, 0);
        return 0;
    }
    if (!is_first)
        introduce(child, FORK, 0);
    return 0;
}

static __always_inline bool is_traced(__u32 pid) {
    __u32 *role = bpf_map_lookup_elem(&traced, &pid);
    return role && *role == TRACED;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(executed, struct task_struct *task, int old, struct linux_binprm *program) {
    if (is_traced(task->tgid))
        introduce(task, EXEC, program->filename);
    return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(ended, struct task_struct *task) {
    __u32 pid = task->tgid;
    // Other threads go on.
    if (task->signal->live.counter || !is_traced(pid))
        return 0;
    bpf_map_delete_elem(&traced, &pid);
    struct call call = {};
    call.head.time = bpf_ktime_get_ns();
    call.head.pid = pid;
    call.head.tid = task->pid;
    call.head.own_tid = own_number(task->thread_pid, task->pid);
    call.head.fd = -1;
    call.head.kind = EXIT;
    call.head.result = task->exit_code;
    piece(&call, 0);
    return 0;
}

// Inode numbers of the sockets that are still there, of those that were met in our network namespace.
SEC("iter/unix")
int alive(struct bpf_iter__unix *it) {
    struct unix_sock *sock = it->unix_sk;
    if (!sock)
        return 0;
    struct seen *seen = bpf_sk_storage_get(&sockets, sock, 0, 0);
    if (!seen)
        return 0;
    __u64 inode = seen->inode;
    bpf_seq_write(it->meta->seq, &inode, sizeof(inode));
    return 0;
}

// Sockets that traced processes have open, an OPEN record each.
SEC("iter/task_file")
int existing(struct bpf_iter__task_file *it) {
    struct task_struct *task = it->task;
    struct file *file = it->file;
    struct {
        struct record record;
        struct peers peers;
    } said = {};
    if (!task || !file || task->pid != task->tgid || !is_traced(task->tgid))
        return 0;
    struct socket *socket = bpf_sock_from_file(file);
    if (!socket)
        return 0;
    struct sock *sock = socket->sk;
    if (!sock || sock->__sk_common.skc_family != AF_UNIX)
        return 0;
    said.record.time = bpf_ktime_get_ns();
    said.record.kind = OPEN;
    said.record.inode = file->f_inode->i_ino;
    said.record.pid = task->tgid;
    said.record.tid = task->pid;
    said.record.own_tid = own_number(task->thread_pid, task->pid);
    said.record.fd = it->fd;
    said.record.call = -1;
    describe(sock, &said.peers);
    bpf_seq_write(it->meta->seq, &said, sizeof(said));
    return 0;
}
