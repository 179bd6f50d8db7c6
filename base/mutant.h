/* SPDX-License-Identifier: Apache-2.0 */
/* mutant.h - ordering steps that a test build can take out one at a time.
 *
 * The crash tests are worth something only if they notice a missing step. So each step that the
 * order of bytes on disk depends on stands under `if (!MUTANT("its-name"))`, or has its wrong twin
 * under `if (MUTANT("its-name"))`; tests/crash compiles the engine once more with
 * VHDD_CRASH_MUTANTS and must see its enumeration fail for every name of the list below. In the
 * product the macro is the constant false, and nothing of this is left.
 *
 * Threads    mutant_is() may be called from any thread, also with locks held. In the test build
 *            it is a place at which the test's scheduler may let another thread run, so a mutant
 *            that swaps two steps is asked between them as well as before.
 */
#pragma once

#include <stdbool.h>

/* X(name, what is left out or done wrongly) */
#define MUTANT_LIST(X)                                                                             \
        X("skip-sync-1", "E3: no fdatasync between a round's data and its bitmaps and BAT")        \
        X("skip-sync-3", "E3: a round answers before its bitmaps and BAT are synced")              \
        X("new-bitmap-late", "E3: a new block's bitmap is written in (2), with its BAT entry")     \
        X("live-bits", "E3: (2) writes the bits as they are then, not as (0) copied them")         \
        X("join-running-round", "E3: a flush joins a round that has begun its (0)")                \
        X("bat-uncopied", "E3: (2) writes BAT sectors with entries that (0) did not copy")         \
        X("dsync-dirty", "E3: FUA uses RWF_DSYNC though bit or BAT entry is not durable")          \
        X("quick-flush",                                                                           \
                "E3: a flush that finds a round running and nothing else dirty only syncs")        \
        X("fua-after-0", "E3: FUA takes what a running round has only copied for durable")         \
        X("no-redo", "E4: nothing is recorded in the redo file")                                   \
        X("empty-all-redo", "E4: the end of a round drops the records from after its (0) as well") \
        X("bit-before-record", "E4: others see the bit before its record is in the redo file")     \
        X("no-sync-at-open", "E4: a dead process's page cache is taken for durable")               \
        X("forget-poison", "E5: the poison is not noted in the redo file")                         \
        X("retry-sync", "E5: a failed sync is tried again")                                        \
        X("footer-not-ahead",                                                                      \
                "E6: blocks are allocated over the footer, before it is further out")              \
        X("skip-zero-new", "E6, E9: a new block's other sectors are not made zero")                \
        X("reuse-before-commit", "E8: a freed place is used again before its round is over")       \
        X("trim-clears-bit", "E9: trim clears bits, and old data of the parent comes back")

/* Those that only a snapshot meets. */
#define MUTANT_LIST_SNAPSHOT(X)                                                                    \
        X("hold-no-wait", "E10: leaves are switched under changes that are on their way")          \
        X("switch-one-by-one", "E10: a disk takes changes again before all are switched")          \
        X("no-switch-record", "E10: that the leaves were switched is recorded nowhere")            \
        X("switch-record-late", "E10: it is recorded after changes are let in again")              \
        X("flush-before-commit", "E10: a flush is answered between switch and commit")             \
        X("fua-before-commit", "E10: a FUA change that needs no round is answered then")           \
        X("frozen-not-flushed", "E10: the commit does not wait for a round of the frozen images")  \
        X("parent-not-settled", "E10: a parent's redo file is only read, and never completed")

/* Those that only a merge meets. */
#define MUTANT_LIST_MERGE(X)                                                                       \
        X("drain-no-round-below", "E11: a source's clear becomes durable without its copy")       \
        X("drain-round-before-copy", "E11: the destination's round began before the source's (0)") \
        X("drain-no-free-record", "E4, E11: that a block was cleared is recorded nowhere")         \
        X("drain-punch-early", "E8: a drained block is punched before its clear is durable")       \
        X("drain-gate-open", "E7: changes pass while a block is copied")                           \
        X("drain-no-grace-up", "E8: a pulled block is cleared below under readers")                \
        X("drain-top-first", "E11: a block is cleared in the upper source before the lower one")   \
        X("drain-no-round-up", "E11: a pulled block is cleared below before its copy is durable")  \
        X("drain-up-frees", "E9, E11: a pulled block of zeros loses its place over a source's")    \
        X("settle-from-top", "E4, E11: parents are settled from the leaf down")                    \
        X("settled-alone", "E4, E11: an image is settled alone whose blocks are below by now")     \
        X("intent-half-shown", "E13: an intent counts that lies beside one of its images alone")   \
        X("intent-comes-back", "E13: an intent that a dead process removed is taken to be gone")   \
        X("intent-sync-unnoted", "E5, E13: a sync that fails while a change is completed is forgotten") \
        X("drain-fua-dsync", "E11: FUA takes the short way while a clear is not durable")          \
        X("replay-over-poison", "E5, E11: blocks are freed whose copies below were lost")           \
        X("drain-begin-no-intent", "E12: a merge begins without new ids")

/* Those that only a job meets which frees and moves blocks. */
#define MUTANT_LIST_COMPACT(X)                                                                     \
        X("move-no-record", "E4: a moved block's new place is recorded nowhere")                   \
        X("move-bitmap-late", "E4: a moved block's bitmap is not at its new place at the record")  \
        X("move-voids-nothing", "E4: records of a block's old place count behind its move")        \
        X("move-before-copy", "E7: a block is moved before its data is copied")                    \
        X("punch-before-commit", "E8: a released block is punched before its round is over")       \
        X("holes-over-pending", "E8: a place is a hole before its round is over")                  \
        X("shrink-over-pending", "E8: the file is cut over a place whose round is not over")       \
        X("truncate-before-sync", "E6: the file is cut before the footer in front is durable")     \
        X("truncate-no-footer", "E6: the file is cut, and no footer was written in front")         \
        X("release-unlike", "E9: a block with zeros in it is released as if it were all zeros")

/* Those that only a resize meets. */
#define MUTANT_LIST_RESIZE(X)                                                                      \
        X("resize-no-intent", "E13: header, BAT and footers change without an intent")             \
        X("resize-footer-not-ahead", "E6: the BAT grows over the end footer")                      \
        X("resize-blocks-stay", "blocks in the way of the BAT are not moved")                      \
        X("resize-not-settled", "E4: the metadata changes before blocks that moved are durable")   \
        X("resize-tail-kept", "what lay behind the old end of the disk shows up in it")            \
        X("resize-footer-late", "fixed: the old footer goes before the new one is durable")        \
        X("resize-size-early", "fixed: the footer speaks of space that is not zero yet")           \
        X("resize-cut-first", "fixed, shrink: the file is cut before a footer stands there")

#ifdef VHDD_CRASH_MUTANTS
/* Is this the step to take out? Defined by tests/crash. */
bool mutant_is(const char *name);
#define MUTANT(name) mutant_is(name)
#else
#define MUTANT(name) false
#endif
