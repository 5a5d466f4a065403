// What is read of the kernel's structs: their names and those of their fields are the kernel's, offsets are found when the
// object is loaded (CO-RE), by the kernel's own description of its types (BTF).
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct upid {
    int nr;
};

struct pid {
    unsigned int level;
    struct upid numbers[1];
};

struct thread_info {
    __u32 status;
};

struct signal_struct {
    struct {
        int counter;
    } live;
    struct pid *pids[4];
};

struct task_struct {
    struct thread_info thread_info;
    int pid;
    int tgid;
    int exit_code;
    struct task_struct *real_parent;
    struct task_struct *group_leader;
    struct pid *thread_pid;
    struct signal_struct *signal;
    char comm[16];
};

struct pt_regs {
    unsigned long dx;
    unsigned long si;
    unsigned long di;
    unsigned long orig_ax;
};

struct linux_binprm {
    const char *filename;
};

typedef struct {
    __u32 val;
} kuid_t;

typedef struct {
    __u32 val;
} kgid_t;

struct cred {
    kuid_t euid;
    kgid_t egid;
};

struct inode {
    unsigned long i_ino;
};

struct file {
    struct inode *f_inode;
};

struct sock;

struct socket {
    struct file *file;
    struct sock *sk;
};

struct ns_common {
    unsigned int inum;
};

struct net {
    struct ns_common ns;
};

typedef struct {
    struct net *net;
} possible_net_t;

struct sock_common {
    unsigned short skc_family;
    unsigned char skc_state;
    possible_net_t skc_net;
};

struct sock {
    struct sock_common __sk_common;
    __u16 sk_type;
    struct socket *sk_socket;
    struct pid *sk_peer_pid;
    const struct cred *sk_peer_cred;
};

struct sockaddr_un {
    __u16 sun_family;
    char sun_path[108];
};

struct unix_address {
    int len;
    struct sockaddr_un name[0];
};

struct unix_sock {
    struct sock sk;
    struct unix_address *addr;
    struct sock *peer;
};

struct seq_file;

struct bpf_iter_meta {
    struct seq_file *seq;
};

struct bpf_iter__task_file {
    struct bpf_iter_meta *meta;
    struct task_struct *task;
    __u32 fd;
    struct file *file;
};

struct bpf_iter__unix {
    struct bpf_iter_meta *meta;
    struct unix_sock *unix_sk;
};

#pragma clang attribute pop

// Of user space, whose layout is fixed.
struct iovec {
    __u64 base;
    __u64 len;
};

struct user_msghdr {
    __u64 name;
    __u64 name_len;
    __u64 iov;
    __u64 iov_len;
    __u64 control;
    __u64 control_len;
    __u64 flags;
};
