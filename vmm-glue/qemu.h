/* SPDX-License-Identifier: Apache-2.0 */
/* qemu.h - the QEMU of this host: where it is, which one it is, and whether KVM really runs a guest.
 *
 * /dev/kvm can be there and run no guest: some kernels, and clouds' nested ones, offer only a part of it.
 * So "auto" tries: QEMU with KVM has to take a firmware through its start, and what came out of that is
 * noted in RUN/vmm/kvm.json until the host boots again or has another QEMU.
 *
 * Units      none.
 * Ownership  plain values.
 * Errors     0 or -errno with one sentence.
 * Threads    all wait for a process: 10 s at most.
 */
#pragma once

#include <limits.h>
#include <stdbool.h>

#include "base/error.h"

#define QEMU_LEAST_MAJOR 7
#define QEMU_LEAST_MINOR 2

struct qemu {
        char program[PATH_MAX];
        char version[64]; /* "7.2.22" */
        int major, minor;
        bool has_spice, has_hv_balloon;
};

/* $VHDD_QEMU, or qemu-system-x86_64 in $PATH.   -ENOENT there is none   -ENOTSUP too old, or says no
 * version */
int qemu_find(struct qemu *ret, struct error *err);
/* Which devices it has: has_spice, has_hv_balloon. */
int qemu_look(struct qemu *qemu, struct error *err);

struct kvm {
        bool works;
        char why[320]; /* it does not; "" */
};
/* @cache: the folder of kvm.json; NULL: try anew, and note nothing. */
void kvm_try(const struct qemu *qemu, const char *cache, struct kvm *ret);

/* What of Hyper-V's interfaces KVM offers a guest. */
struct kvm_hyperv {
        bool is_there, synic, vp_index;
};
void kvm_hyperv_look(struct kvm_hyperv *ret);

/* The background snapshot's means: write faults of our own memory, told to us. */
int userfaultfd_try(struct error *err);
