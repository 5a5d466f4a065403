/* Every hooked call that moves bytes, with its account: each does what the function of its name does. */
#pragma once

#include "truth.h"

#include <sys/socket.h>
#include <sys/uio.h>

ssize_t send_on(const struct conn *to, const void *bytes, size_t len, int flags);
ssize_t sendto_on(const struct conn *to, const void *bytes, size_t len, const struct sockaddr *addr, socklen_t addr_len);
ssize_t sendmsg_on(const struct conn *to, const struct msghdr *message, int flags);
ssize_t write_on(const struct conn *to, const void *bytes, size_t len);
ssize_t writev_on(const struct conn *to, const struct iovec *iov, int count);

ssize_t recv_on(const struct conn *from, void *buffer, size_t len, int flags);
ssize_t recvfrom_on(const struct conn *from, void *buffer, size_t len, struct sockaddr *addr, socklen_t *addr_len);
ssize_t recvmsg_on(const struct conn *from, struct msghdr *message, int flags);
ssize_t read_on(const struct conn *from, void *buffer, size_t len);
ssize_t readv_on(const struct conn *from, const struct iovec *iov, int count);

/* What -D_FORTIFY_SOURCE makes of read, recv and recvfrom; where the libc has no such functions, those themselves. */
ssize_t read_chk_on(const struct conn *from, void *buffer, size_t len);
ssize_t recv_chk_on(const struct conn *from, void *buffer, size_t len);
ssize_t recvfrom_chk_on(const struct conn *from, void *buffer, size_t len);

/* Sends `len` fresh bytes by send() and receives them all by recv(): the plain exchange where the case is about
 * something else. */
void exchange(const struct conn *from, const struct conn *to, size_t len);
