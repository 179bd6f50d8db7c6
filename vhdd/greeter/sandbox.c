/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/greeter/sandbox.h"

#include <grp.h>
#include <linux/landlock.h>
#include <seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"

/* What a server on sockets that it has needs, and the C library under its threads. */
static const int allowed[] = {
        SCMP_SYS(accept4),
        SCMP_SYS(brk),
        SCMP_SYS(clock_gettime),
        SCMP_SYS(clock_nanosleep),
        SCMP_SYS(clone),
        SCMP_SYS(clone3),
        SCMP_SYS(close),
        SCMP_SYS(epoll_create1),
        SCMP_SYS(epoll_ctl),
        SCMP_SYS(epoll_pwait),
        SCMP_SYS(epoll_wait),
        SCMP_SYS(eventfd2),
        SCMP_SYS(exit),
        SCMP_SYS(exit_group),
        SCMP_SYS(fcntl),
        SCMP_SYS(futex),
        SCMP_SYS(getpeername),
        SCMP_SYS(getpid),
        SCMP_SYS(getrandom),
        SCMP_SYS(getsockname),
        SCMP_SYS(getsockopt),
        SCMP_SYS(gettid),
        SCMP_SYS(gettimeofday),
        SCMP_SYS(madvise),
        SCMP_SYS(mmap),
        SCMP_SYS(mprotect),
        SCMP_SYS(mremap),
        SCMP_SYS(munmap),
        SCMP_SYS(nanosleep),
        SCMP_SYS(poll),
        SCMP_SYS(ppoll),
        SCMP_SYS(read),
        SCMP_SYS(recvfrom),
        SCMP_SYS(recvmsg),
        SCMP_SYS(restart_syscall),
        SCMP_SYS(rseq),
        SCMP_SYS(rt_sigaction),
        SCMP_SYS(rt_sigprocmask),
        SCMP_SYS(rt_sigreturn),
        SCMP_SYS(sched_getaffinity),
        SCMP_SYS(sched_yield),
        SCMP_SYS(sendmsg),
        SCMP_SYS(sendto),
        SCMP_SYS(set_robust_list),
        SCMP_SYS(setsockopt),
        SCMP_SYS(shutdown),
        SCMP_SYS(sigaltstack),
        SCMP_SYS(tgkill),
        SCMP_SYS(write),
};

/* No part of ours would ever try these: whoever does has taken the process over. */
static const int deadly[] = {
        SCMP_SYS(bpf),
        SCMP_SYS(execve),
        SCMP_SYS(execveat),
        SCMP_SYS(init_module),
        SCMP_SYS(io_uring_setup),
        SCMP_SYS(mount),
        SCMP_SYS(process_vm_readv),
        SCMP_SYS(process_vm_writev),
        SCMP_SYS(ptrace),
        SCMP_SYS(setns),
        SCMP_SYS(unshare),
        SCMP_SYS(userfaultfd),
};

static void cleanup_filter(scmp_filter_ctx *filter)
{
        if (*filter)
                seccomp_release(*filter);
}

static int add_rules(scmp_filter_ctx filter)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < sizeof(allowed) / sizeof(allowed[0]); i++)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
        for (size_t i = 0; r == 0 && i < sizeof(deadly) / sizeof(deadly[0]); i++)
                r = seccomp_rule_add(filter, SCMP_ACT_KILL_PROCESS, deadly[i], 0);
        /* Names of threads, for people who look. */
        if (r == 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
                        SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME, 0));
        return r;
}

/* What is not needed fails with EPERM: a C library that tries something new goes on without it. */
static int limit_calls(struct error *err)
{
        _cleanup_(cleanup_filter) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
        int r;

        if (!filter)
                return fail(err, ENOMEM, "no memory for a filter of system calls");
        r = add_rules(filter);
        if (r == 0)
                r = seccomp_load(filter);
        return r == 0 ? 0 : fail_os(err, -r, "cannot load the filter of system calls");
}

/* Everything that this version of landlock can forbid about files and sockets, and no exception. */
static int forbid_files(unsigned *ret_version, struct error *err)
{
        long version =
                syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
        struct landlock_ruleset_attr attr = {0};
        _cleanup_fd_ int fd = -1;

        *ret_version = 0;
        if (version < 1)
                return 0;
        /* The first version knows 13 kinds of access, the second one more, the third one more. */
        attr.handled_access_fs = version == 1 ? (1u << 13) - 1
                : version == 2                ? (1u << 14) - 1
                                              : (1u << 15) - 1;
        fd = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr.handled_access_fs), 0);
        if (fd < 0 || syscall(SYS_landlock_restrict_self, fd, 0) < 0)
                return fail_os(err, errno, "cannot give up access to files");
        *ret_version = (unsigned)version;
        return 0;
}

static int drop_user(uid_t uid, gid_t gid, struct error *err)
{
        if (geteuid() != 0)
                return 0;
        if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
                return fail_os(err, errno, "cannot become user %u and group %u", uid, gid);
        return 0;
}

int greeter_sandbox(uid_t uid, gid_t gid, unsigned *ret_landlock, struct error *err)
{
        static const struct rlimit none = {0};
        int r = drop_user(uid, gid, err);

        if (r < 0)
                return r;
        /* After the change of user, which forgets it. */
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0 ||
                setrlimit(RLIMIT_CORE, &none) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return fail_os(err, errno, "cannot give up privileges");
        r = forbid_files(ret_landlock, err);
        return r < 0 ? r : limit_calls(err);
}
