/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/worker/sandbox.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/ioprio.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"

#define MIN_DESCRIPTORS 65536u
#define PROT_EXEC_BIT   UINT64_C(4)

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
        __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                     \
        __has_feature(memory_sanitizer)
#define SANITIZED true
#else
#define SANITIZED false
#endif

static void note(struct sandbox *sandbox, const char *format, ...)
        __attribute__((format(printf, 2, 3)));
static void note(struct sandbox *sandbox, const char *format, ...)
{
        size_t n = strlen(sandbox->notes);
        va_list args;

        if (n > 0 && n < sizeof(sandbox->notes) - 2)
                n += (size_t)snprintf(sandbox->notes + n, sizeof(sandbox->notes) - n, "; ");
        va_start(args, format);
        vsnprintf(sandbox->notes + n, sizeof(sandbox->notes) - n, format, args);
        va_end(args);
}

/* A chain of 1000 layers, times the disks of a vm, and its clients: as many as we may have. */
static void raise_descriptors(void)
{
        struct rlimit limit, more;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
                return;
        more.rlim_cur = more.rlim_max =
                limit.rlim_max < MIN_DESCRIPTORS ? MIN_DESCRIPTORS : limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &more) == 0)
                return;
        limit.rlim_cur = limit.rlim_max; /* without the right to raise that */
        setrlimit(RLIMIT_NOFILE, &limit);
}

/* --- as root --- */

/* A directory without a writer, which holds nothing but the numbers of our own descriptors. */
static int leave_root(struct sandbox *sandbox, struct error *err)
{
        if (chroot("/proc/self/fdinfo") < 0) {
                note(sandbox, "no root directory of its own (%s)", strerror(errno));
                return 0;
        }
        if (chdir("/") < 0)
                return fail_os(err, errno, "cannot enter the empty root directory");
        return 0;
}

static int drop_user(struct sandbox *sandbox, struct error *err)
{
        if (setgroups(0, NULL) < 0 || setresgid(sandbox->gid, sandbox->gid, sandbox->gid) < 0 ||
                setresuid(sandbox->uid, sandbox->uid, sandbox->uid) < 0)
                return fail_os(err, errno, "the %s cannot become user %u, group %u", sandbox->name,
                        (unsigned)sandbox->uid, (unsigned)sandbox->gid);
        if (setuid(0) == 0)
                return fail(err, EPERM, "the %s could become root again", sandbox->name);
        return 0;
}

static int drop_root(struct sandbox *sandbox, struct error *err)
{
        int r;

        if (geteuid() != 0)
                return 0;
        if (unshare(CLONE_NEWNET) < 0)
                note(sandbox, "no network of its own (%s)", strerror(errno));
        r = leave_root(sandbox, err);
        if (r == 0 && sandbox->uid != 0)
                r = drop_user(sandbox, err);
        return r;
}

/* --- landlock --- */

/* Every right on files that this kernel knows is taken, and none given back for any path. */
static int forbid_paths(struct sandbox *sandbox, struct error *err)
{
        struct landlock_ruleset_attr attr = {0};
        _cleanup_fd_ int ruleset = -1;
        long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

        if (abi < 1) {
                note(sandbox, "no landlock (%s)", strerror(errno));
                return 0;
        }
        /* 13 rights came with version 1; refer, truncate and ioctl_dev one each with 2, 3 and 5. */
        attr.handled_access_fs = (UINT64_C(1) << 13) - 1;
        if (abi >= 2)
                attr.handled_access_fs |= UINT64_C(1) << 13;
        if (abi >= 3)
                attr.handled_access_fs |= UINT64_C(1) << 14;
        ruleset =
                (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr.handled_access_fs), 0);
        if (ruleset < 0)
                return fail_os(err, errno, "cannot make landlock's rules");
        if (syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
                return fail_os(err, errno, "cannot apply landlock's rules");
        return 0;
}

/* No core (a guest's data would be in it), and no more memory than was said. */
static int set_limits(struct sandbox *sandbox, struct error *err)
{
        const struct rlimit none = {0};
        const struct rlimit memory = {
                .rlim_cur = sandbox->max_memory, .rlim_max = sandbox->max_memory};

        raise_descriptors();
        if (setrlimit(RLIMIT_CORE, &none) < 0)
                return fail_os(err, errno, "the %s cannot give up core dumps", sandbox->name);
        /* A sanitizer's shadow alone is larger than any limit. */
        if (sandbox->max_memory > 0 && !SANITIZED && setrlimit(RLIMIT_AS, &memory) < 0)
                return fail_os(err, errno, "the %s cannot limit its memory", sandbox->name);
        return 0;
}

int sandbox_enter(struct sandbox *sandbox, struct error *err)
{
        int r = set_limits(sandbox, err);

        if (r < 0)
                return r;
        if (SANITIZED) {
                note(sandbox, "built with sanitizers, which need what a sandbox forbids");
                return geteuid() == 0 && sandbox->uid != 0 ? drop_user(sandbox, err) : 0;
        }
        r = drop_root(sandbox, err);
        if (r < 0)
                return r;
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return fail_os(err, errno, "cannot give up new privileges");
        if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
                return fail_os(err, errno, "cannot forbid tracing");
        return forbid_paths(sandbox, err);
}

/* --- seccomp --- */

static const int allowed[] = {
        /* bytes of files that are open */
        SCMP_SYS(read),
        SCMP_SYS(write),
        SCMP_SYS(readv),
        SCMP_SYS(writev),
        SCMP_SYS(pread64),
        SCMP_SYS(pwrite64),
        SCMP_SYS(preadv),
        SCMP_SYS(pwritev),
        SCMP_SYS(preadv2),
        SCMP_SYS(pwritev2),
        SCMP_SYS(lseek),
        SCMP_SYS(fsync),
        SCMP_SYS(fdatasync),
        SCMP_SYS(ftruncate),
        SCMP_SYS(fallocate),
        SCMP_SYS(fadvise64),
        SCMP_SYS(readahead),
        SCMP_SYS(sync_file_range),
        SCMP_SYS(fstat),
        SCMP_SYS(fstatfs),
        SCMP_SYS(flock),
        SCMP_SYS(sendfile),
        SCMP_SYS(splice),
        SCMP_SYS(copy_file_range),
        SCMP_SYS(close),
        SCMP_SYS(close_range),
        SCMP_SYS(dup),
        SCMP_SYS(dup2),
        SCMP_SYS(dup3),
        SCMP_SYS(pipe2),
        SCMP_SYS(eventfd2),
        SCMP_SYS(memfd_create),
        /* sockets that are there */
        SCMP_SYS(accept),
        SCMP_SYS(accept4),
        SCMP_SYS(listen),
        SCMP_SYS(recvfrom),
        SCMP_SYS(recvmsg),
        SCMP_SYS(recvmmsg),
        SCMP_SYS(sendto),
        SCMP_SYS(sendmsg),
        SCMP_SYS(sendmmsg),
        SCMP_SYS(shutdown),
        SCMP_SYS(getsockopt),
        SCMP_SYS(setsockopt),
        SCMP_SYS(getsockname),
        SCMP_SYS(getpeername),
        /* waiting */
        SCMP_SYS(poll),
        SCMP_SYS(ppoll),
        SCMP_SYS(epoll_create1),
        SCMP_SYS(epoll_ctl),
        SCMP_SYS(epoll_wait),
        SCMP_SYS(epoll_pwait),
        SCMP_SYS(epoll_pwait2),
        SCMP_SYS(select),
        SCMP_SYS(pselect6),
        SCMP_SYS(nanosleep),
        SCMP_SYS(clock_nanosleep),
        SCMP_SYS(io_uring_enter),
        /* memory and threads */
        SCMP_SYS(munmap),
        SCMP_SYS(mremap),
        SCMP_SYS(madvise),
        SCMP_SYS(brk),
        SCMP_SYS(futex),
        SCMP_SYS(futex_waitv),
        SCMP_SYS(set_robust_list),
        SCMP_SYS(get_robust_list),
        SCMP_SYS(rseq),
        SCMP_SYS(membarrier),
        SCMP_SYS(sched_yield),
        SCMP_SYS(sched_getaffinity),
        SCMP_SYS(set_tid_address),
        SCMP_SYS(exit),
        SCMP_SYS(exit_group),
        SCMP_SYS(restart_syscall),
        SCMP_SYS(rt_sigaction),
        SCMP_SYS(rt_sigprocmask),
        SCMP_SYS(rt_sigreturn),
        SCMP_SYS(sigaltstack),
        SCMP_SYS(rt_sigtimedwait),
        /* who and when */
        SCMP_SYS(getpid),
        SCMP_SYS(gettid),
        SCMP_SYS(getuid),
        SCMP_SYS(geteuid),
        SCMP_SYS(getgid),
        SCMP_SYS(getegid),
        SCMP_SYS(getrandom),
        SCMP_SYS(clock_gettime),
        SCMP_SYS(clock_getres),
        SCMP_SYS(gettimeofday),
        SCMP_SYS(time),
        SCMP_SYS(getrusage),
        SCMP_SYS(sysinfo),
        SCMP_SYS(uname),
};

/* Nobody makes these but one who has broken in. */
static const int deadly[] = {
        SCMP_SYS(execve),
        SCMP_SYS(execveat),
        SCMP_SYS(ptrace),
        SCMP_SYS(process_vm_readv),
        SCMP_SYS(process_vm_writev),
        SCMP_SYS(mount),
        SCMP_SYS(pivot_root),
        SCMP_SYS(bpf),
        SCMP_SYS(init_module),
        SCMP_SYS(finit_module),
        SCMP_SYS(kexec_load),
        SCMP_SYS(setns),
        SCMP_SYS(unshare),
        SCMP_SYS(userfaultfd),
        SCMP_SYS(perf_event_open),
        SCMP_SYS(io_uring_setup),
        SCMP_SYS(io_uring_register),
        SCMP_SYS(chroot),
        SCMP_SYS(open_by_handle_at),
};

/* With conditions on what they are asked for. */
static int add_conditional(scmp_filter_ctx filter)
{
        static const unsigned fcntls[] = {F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_DUPFD,
                F_DUPFD_CLOEXEC, F_OFD_SETLK, F_OFD_SETLKW, F_OFD_GETLK, F_ADD_SEALS, F_GET_SEALS};
        static const unsigned ioctls[] = {/* FIONREAD, SIOCOUTQ, BLKGETSIZE64, BLKGETDISKSEQ,
                                           * BLKDISCARD, BLKZEROOUT, BLKSSZGET, FICLONERANGE */
                0x541b, 0x5411, 0x80081272, 0x80081280, 0x1277, 0x127f, 0x1268, 0x4020940d};
        const scmp_datum_t empty_path = AT_EMPTY_PATH;
        /* Threads, never processes: what glibc's pthread_create asks for, and nothing else. */
        const scmp_datum_t thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND |
                CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID |
                CLONE_CHILD_CLEARTID;
        int r = 0;

        for (size_t i = 0; r == 0 && i < sizeof(fcntls) / sizeof(fcntls[0]); i++)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1,
                        SCMP_A1(SCMP_CMP_EQ, fcntls[i], 0));
        for (size_t i = 0; r == 0 && i < sizeof(ioctls) / sizeof(ioctls[0]); i++)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                        SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, ioctls[i]));
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                        SCMP_A0(SCMP_CMP_EQ, thread, 0));
        /* glibc tries clone3 first, whose flags no filter can read, and falls back. */
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
        /* What an open descriptor is, never what a path is. */
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(newfstatat), 1,
                        SCMP_A3(SCMP_CMP_MASKED_EQ, empty_path, empty_path));
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(statx), 1,
                        SCMP_A2(SCMP_CMP_MASKED_EQ, empty_path, empty_path));
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(name_to_handle_at), 1,
                        SCMP_A4(SCMP_CMP_MASKED_EQ, empty_path, empty_path));
        /* No memory becomes code. */
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                        SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC_BIT, 0));
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                        SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC_BIT, 0));
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
                        SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME, 0));
        /* A thread of ours may become less important than the others. */
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioprio_set), 2,
                        SCMP_A0(SCMP_CMP_EQ, IOPRIO_WHO_PROCESS, 0), SCMP_A1(SCMP_CMP_EQ, 0, 0));
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(setpriority), 2,
                        SCMP_A0(SCMP_CMP_EQ, PRIO_PROCESS, 0), SCMP_A1(SCMP_CMP_EQ, 0, 0));
        if (r == 0) /* abort() */
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
                        SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid(), 0));
        /* How glibc learns how much stack a thread has. */
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2,
                        SCMP_A0(SCMP_CMP_EQ, 0, 0), SCMP_A2(SCMP_CMP_EQ, 0, 0));
        return r;
}

static int build(scmp_filter_ctx filter)
{
        int r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);

        if (r == 0)
                r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
        for (size_t i = 0; r == 0 && i < sizeof(allowed) / sizeof(allowed[0]); i++)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
        for (size_t i = 0; r == 0 && i < sizeof(deadly) / sizeof(deadly[0]); i++)
                r = seccomp_rule_add(filter, SCMP_ACT_KILL_PROCESS, deadly[i], 0);
        return r == 0 ? add_conditional(filter) : r;
}

int sandbox_seal(struct sandbox *sandbox, struct error *err)
{
        scmp_filter_ctx filter;
        int r;

        if (SANITIZED)
                return 0;
        filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
        if (!filter)
                return fail(err, ENOMEM, "no memory for a list of system calls");
        r = build(filter);
        if (r == 0)
                r = seccomp_load(filter);
        seccomp_release(filter);
        if (r < 0)
                return fail_os(err, -r, "the %s cannot give up system calls", sandbox->name);
        return 0;
}
