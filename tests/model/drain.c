/* SPDX-License-Identifier: Apache-2.0 */
/* drain.c - one unit of a merge (E11) under a guest's writes, zeros and flushes, or under a reader
 * that holds no gate, with power cuts, deaths and failed syncs (E3, E4, E5, E7, E8).
 *
 * Two images of one block of two sectors: the source S and the destination T. Going down the source
 * is the leaf and T its parent; going up S is the parent and T the leaf. It may hold anything at
 * first, so that what a cut leaves is among the states that a run begins with, and a merge that was
 * cut off is begun again in each. A power cut leaves of each sector any value it had since its last
 * completed sync.
 *
 * Rounds are E3's in three steps. Not here: a block that was freed and gets a new place before the
 * free is durable (tests/crash has that), snapshots, more than two images (layers.c). */
#include "tests/model/explore.h"

#include <string.h>

enum { SOURCE, DESTINATION, N_IMAGES };
enum { N_SECTORS = 2, N_OPS = 2, WHOLE_BLOCK = 2 };

/* What a sector of a file holds. What reads as zeros because nobody has it counts as ZEROS. */
enum {
        ZEROS,
        FROM_OP,
        /* and 2: the other operation's */ FROM_SOURCE = 3,
        FROM_DESTINATION,
        GARBAGE
};
/* Bits and entries are items, too. */
enum { NO_BLOCK = 0, HAS_BLOCK = 1 };

enum {
        /* what a run is about */
        UP = 1u << 0,
        READ = 1u << 1, /* readers, and no flush */
        TWO_READS = 1u << 2,
        DEATH = 1u << 3,
        FAULT = 1u << 4,
        LOOKS = 1u
                << 5, /* a flush looks at one image after the other and passes over a clean one */
        /* what is left out */
        GATE_OPEN = 1u << 6,
        NO_ROUND_BELOW = 1u << 7,
        ROUND_BEFORE_COPY = 1u << 8, /* of the dirty entries, step (0) */
        NO_FREE_RECORD = 1u << 9,
        PUNCH_EARLY = 1u << 10, /* before the source's round has ended */
        NO_GRACE = 1u << 11,
        NO_GRACE_UP = 1u << 12,
        NO_ROUND_UP = 1u << 13,
        FUA_DSYNC = 1u << 14,
        FREE_UP = 1u << 15,
        FLUSH_LEAF_ONLY = 1u << 16,
        DESTINATION_FIRST = 1u << 17,
        ROUND_BELOW_IF_METADATA = 1u << 18,
        NOT_SETTLED = 1u << 19,
        REPLAY_OVER_POISON = 1u << 20,
        CLEAR_BEFORE_COPY_UP = 1u << 21,
        TRUST_FILES = 1u << 22,
        ROUND_WITH_CLEAR_UP = 1u << 23, /* up as it goes down: the round is part of the source's */
        WRITES_TO_LEAF = 1u << 24,
};

enum job {
        JOB_NONE,
        JOB_BEGUN,
        JOB_READ,
        JOB_COPIED,
        JOB_GRACE,
        JOB_CLEARED,
        JOB_COMMITTED,
        JOB_PUNCHED
};
enum want { WANT_NOTHING, WANT_ROUND, IN_ROUND, HAD_ROUND };

struct half {
        uint8_t freed; /* the block lost its place: voids what came before */
        uint8_t bits;
};

struct image {
        struct item data[N_SECTORS], bits, entry; /* the file */
        uint8_t present, now;                     /* memory: entry and bits */
        uint8_t durable_entry;
        uint8_t phase, copied_entry, copied_bits; /* the round */
        uint8_t unsynced;
        struct half old, new; /* the redo file */
        uint8_t for_flush, for_job, for_source;
        uint8_t poisoned, was_freed;
};

struct state {
        struct image images[N_IMAGES];
        uint8_t source_bits, destination_bits; /* at first */
        uint8_t what[N_OPS], op[N_OPS], target[N_OPS], before[N_OPS], n_written[N_OPS];
        uint8_t begun, answered, covered;
        uint8_t flush, flush_covers; /* 0 none yet, 1 one image looked at, 2 both, 3 answered */
        uint8_t job, copy[N_SECTORS], copy_bits;
        uint8_t opening; /* a parent is settled, and nobody served */
        uint8_t reader, reader_knows, reader_before, n_read, read_sector, last_read;
        uint8_t is_for_reading; /* opened over a poisoned image */
        uint8_t deaths, faults, bad;
};

static unsigned flags;
static const struct state *current;

static unsigned top(void)
{
        return flags & UP ? DESTINATION : SOURCE;
}

static unsigned initial_value(const struct state *s, unsigned sector)
{
        bool source = s->source_bits >> sector & 1, destination = s->destination_bits >> sector & 1;

        if (flags & UP)
                return destination ? FROM_DESTINATION : source ? FROM_SOURCE : ZEROS;
        return source ? FROM_SOURCE : destination ? FROM_DESTINATION : ZEROS;
}

static bool hides(const struct state *s, unsigned op, unsigned sector)
{
        return s->what[op] == sector || s->what[op] == WHOLE_BLOCK;
}

static unsigned value_of(const struct state *s, unsigned op)
{
        return s->what[op] == WHOLE_BLOCK ? ZEROS : FROM_OP + op;
}

/* May the sector read so, if these operations must not be lost? */
static bool may_read(const struct state *s, unsigned sector, unsigned value, unsigned required)
{
        bool may = value == initial_value(s, sector);

        for (unsigned j = 0; j < N_OPS; j++)
                if (required >> j & 1 && hides(s, j, sector))
                        may = false;
        for (unsigned i = 0; i < N_OPS && !may; i++) {
                may = s->begun >> i & 1 && hides(s, i, sector) && value_of(s, i) == value;
                for (unsigned j = 0; j < N_OPS; j++)
                        if (j != i && required >> j & 1 && hides(s, j, sector) &&
                                s->before[j] >> i & 1)
                                may = false;
        }
        return may;
}

static bool has(const struct image *image, unsigned sector)
{
        return image->present && image->now >> sector & 1;
}

static unsigned view(const struct state *s, unsigned sector)
{
        for (unsigned i = 0; i < N_IMAGES; i++) {
                const struct image *image = &s->images[i ? !top() : top()];

                if (has(image, sector))
                        return image->data[sector].cached;
        }
        return ZEROS;
}

static bool may_be(const struct item *item, unsigned value)
{
        return item->possible >> value & 1;
}

/* After a cut: the image has the sector (1), has it not (0), or either (2 + ...: a set of both). */
static unsigned ways_to_have(const struct image *image, unsigned sector)
{
        unsigned ways = may_be(&image->entry, NO_BLOCK) ? 1u : 0;

        for (unsigned bits = 0; bits < 4 && may_be(&image->entry, HAS_BLOCK); bits++)
                if (may_be(&image->bits, bits))
                        ways |= bits >> sector & 1 ? 2u : 1u;
        return ways;
}

/* Any of the values that the image's sector may hold, and that a read must not answer. */
static bool shows_wrong(const struct state *s, const struct image *image, unsigned sector)
{
        for (unsigned value = 0; value < 8; value++)
                if (may_be(&image->data[sector], value) && !may_read(s, sector, value, s->covered))
                        return true;
        return false;
}

static const char *check_cut(const struct state *s, unsigned sector)
{
        const struct image *upper = &s->images[top()], *lower = &s->images[!top()];
        unsigned above = ways_to_have(upper, sector), below = ways_to_have(lower, sector);

        if (above & 2 && shows_wrong(s, upper, sector))
                return "power cut: the upper image shows what it must not";
        if (above & 1 && below & 2 && shows_wrong(s, lower, sector))
                return "power cut: the lower image shows what it must not";
        if (above & 1 && below & 1 && !may_read(s, sector, ZEROS, s->covered))
                return "power cut: neither image has the sector";
        return NULL;
}

static const char *check(const void *state)
{
        const struct state *s = state;

        if (s->bad == 1)
                return "the guest's view changes with no write under way";
        if (s->bad == 2)
                return "a read answers what it must not";
        if (s->bad == 3)
                return "a second read goes back behind the first";
        for (unsigned sector = 0; sector < N_SECTORS; sector++) {
                const char *broken = check_cut(s, sector);

                if (!may_read(s, sector, view(s, sector), s->answered))
                        return "an answered write is not seen by the living";
                if (broken)
                        return broken;
        }
        return NULL;
}

static bool is_under_way(const struct state *s, unsigned op)
{
        return s->op[op] == 1;
}

static bool any_under_way(const struct state *s)
{
        return is_under_way(s, 0) || is_under_way(s, 1);
}

/* A step of the merge, of a round or a reader: the guest must not see it. */
#define EMIT_UNSEEN(next, ...)                                                                     \
        do {                                                                                       \
                if (!any_under_way(current))                                                       \
                        for (unsigned sector_ = 0; sector_ < N_SECTORS; sector_++)                 \
                                if (view(current, sector_) != view(next, sector_))                 \
                                        (next)->bad = 1;                                           \
                explore_emit(next, __VA_ARGS__);                                                   \
        } while (0)

/* --- the guest --- */

static bool gate_is_shut(const struct state *s)
{
        if (flags & GATE_OPEN)
                return false;
        return s->job == JOB_READ || (!(flags & UP) && s->job == JOB_COPIED);
}

/* "Does any source hold a block in this unit?": the leaf takes the write, else the destination. */
static unsigned target_of(const struct state *s)
{
        if (flags & UP)
                return DESTINATION;
        if (s->job == JOB_NONE || flags & WRITES_TO_LEAF)
                return SOURCE;
        return s->images[SOURCE].present ? SOURCE : DESTINATION;
}

/* Has the image a place for the block, or can it have its first one? */
static bool has_place(struct image *image)
{
        if (!image->present && (image->was_freed || image->entry.possible != 1u << NO_BLOCK))
                return false;
        image->present = 1;
        return true;
}

static void free_block(struct image *image)
{
        image->present = image->now = 0;
        image->was_freed = 1;
        image->new.freed = 1;
        image->new.bits = 0;
}

static void complete(struct image *image, unsigned bits)
{
        if (!image->present)
                return; /* only where the gate does nothing */
        image->new.bits |= (uint8_t)(bits & ~(unsigned)image->now);
        image->now |= (uint8_t)bits;
}

static bool reads_zeros_without(const struct state *s, unsigned target)
{
        const struct image *source = &s->images[SOURCE], *destination = &s->images[DESTINATION];

        if (flags & UP)
                return !(source->present && source->now) && (s->job == JOB_NONE || flags & FREE_UP);
        return target == DESTINATION || !(destination->present && destination->now);
}

static void start_op(const struct state *s, unsigned i)
{
        struct state n = *s;
        unsigned target = target_of(s);
        struct image *image = &n.images[target];
        bool alone = s->what[i] == WHOLE_BLOCK;

        if (gate_is_shut(s) || s->opening || s->is_for_reading)
                return;
        if (is_under_way(s, !i) && (alone || s->what[!i] == WHOLE_BLOCK))
                return;
        n.before[i] = s->answered;
        n.begun |= (uint8_t)(1u << i);
        n.target[i] = (uint8_t)target;
        if (alone && reads_zeros_without(s, target)) {
                if (image->present)
                        free_block(image);
                n.op[i] = 2;
                n.answered |= (uint8_t)(1u << i);
                explore_emit(&n, "zero %u frees the block in %s, answered", i, target ? "T" : "S");
                return;
        }
        if (!has_place(image))
                return;
        n.op[i] = 1;
        explore_emit(&n, "%s %u starts, to %s", alone ? "zero" : "write", i, target ? "T" : "S");
}

static void go_on_with_op(const struct state *s, unsigned i)
{
        struct state n = *s;
        struct image *image = &n.images[s->target[i]];
        bool alone = s->what[i] == WHOLE_BLOCK;

        if (!s->n_written[i]) {
                for (unsigned sector = 0; sector < N_SECTORS; sector++)
                        if (hides(s, i, sector))
                                item_write(&image->data[sector], value_of(s, i));
                image->unsynced = 1;
                n.n_written[i] = 1;
                explore_emit(&n, "%s %u: data in %s", alone ? "zero" : "write", i,
                        s->target[i] ? "T" : "S");
                return;
        }
        if (flags & FUA_DSYNC && i == 1 && !alone && image->durable_entry && image->present &&
                image->bits.possible == 1u << image->now && has(image, s->what[i])) {
                item_sync(&image->data[s->what[i]]);
                n.covered |= (uint8_t)(1u << i);
        }
        complete(image, alone ? 3 : 1u << s->what[i]);
        n.op[i] = 2;
        n.answered |= (uint8_t)(1u << i);
        explore_emit(&n, "%s %u is recorded and answered%s", alone ? "zero" : "write", i,
                n.covered != s->covered ? " (FUA)" : "");
}

static bool is_dirty(const struct image *image)
{
        return image->unsynced || image->phase || image->present != image->durable_entry ||
                image->old.bits || image->new.bits || image->old.freed || image->new.freed;
}

static void look_at(struct state *n, unsigned i)
{
        struct image *image = &n->images[i];
        bool passed_over =
                (flags & LOOKS && !is_dirty(image)) || (flags & FLUSH_LEAF_ONLY && i != top());

        image->for_flush = passed_over ? HAD_ROUND : WANT_ROUND;
}

/* The flush is answered when all it waits for has ended. */
static void answer_flush(struct state *n)
{
        if (n->flush != 2 || n->images[0].for_flush != HAD_ROUND ||
                n->images[1].for_flush != HAD_ROUND)
                return;
        n->flush = 3;
        n->covered |= n->flush_covers;
        n->images[0].for_flush = n->images[1].for_flush = 0;
}

static void flush(const struct state *s)
{
        struct state n = *s;
        unsigned first = flags & DESTINATION_FIRST ? DESTINATION : SOURCE;

        if (s->opening || s->is_for_reading || flags & READ || s->flush > 1)
                return;
        if (s->flush == 0) {
                n.flush_covers = s->answered;
                look_at(&n, first);
                n.flush = 1;
        }
        if (s->flush == 1 || !(flags & LOOKS)) {
                look_at(&n, !first);
                n.flush = 2;
        }
        answer_flush(&n);
        explore_emit(&n, s->flush ? "the flush looks at the other image" : "a flush arrives");
}

/* --- a round --- */

static void sync_begin(struct image *image)
{
        for (unsigned i = 0; i < N_SECTORS; i++)
                item_sync_begin(&image->data[i]);
        item_sync_begin(&image->bits);
        item_sync_begin(&image->entry);
}

static void sync_end(struct image *image)
{
        for (unsigned i = 0; i < N_SECTORS; i++)
                item_sync_end(&image->data[i]);
        item_sync_end(&image->bits);
        item_sync_end(&image->entry);
}

static void want_to_have(uint8_t *want, uint8_t from, uint8_t to)
{
        if (*want == from)
                *want = to;
}

/* Must the other image have a whole round inside of this one's? */
static bool needs_other(const struct state *s, const struct image *image)
{
        if (image != &s->images[SOURCE] || s->job == JOB_NONE || flags & NO_ROUND_BELOW)
                return false;
        if (flags & UP)
                return flags & ROUND_WITH_CLEAR_UP;
        if (flags & ROUND_BELOW_IF_METADATA)
                return image->present != image->durable_entry || image->new.bits || image->old.bits;
        return true;
}

static void round_begin(struct state *n, struct image *image)
{
        want_to_have(&image->for_flush, WANT_ROUND, IN_ROUND);
        want_to_have(&image->for_job, WANT_ROUND, IN_ROUND);
        want_to_have(&image->for_source, WANT_ROUND, IN_ROUND);
        if (needs_other(n, image) && !(flags & ROUND_BEFORE_COPY))
                n->images[DESTINATION].for_source = WANT_ROUND;
        image->unsynced = 0;
        image->copied_entry = image->present && (image->now || image->durable_entry);
        image->copied_bits = image->now;
        if (image->new.freed)
                image->old = image->new;
        else
                image->old.bits |= image->new.bits;
        memset(&image->new, 0, sizeof(image->new));
        if (image->copied_entry && !image->durable_entry)
                item_write(&image->bits, image->copied_bits);
        sync_begin(image);
        image->phase = 1;
}

static void round_write(struct image *image)
{
        sync_end(image);
        if (image->copied_entry && image->durable_entry)
                item_write(&image->bits, image->copied_bits);
        item_write(&image->entry, image->copied_entry ? HAS_BLOCK : NO_BLOCK);
        sync_begin(image);
        image->phase = 2;
}

static void round_end(struct state *n, struct image *image)
{
        sync_end(image);
        image->durable_entry = image->copied_entry;
        image->phase = image->copied_entry = image->copied_bits = 0;
        memset(&image->old, 0, sizeof(image->old));
        want_to_have(&image->for_flush, IN_ROUND, HAD_ROUND);
        want_to_have(&image->for_job, IN_ROUND, HAD_ROUND);
        want_to_have(&image->for_source, IN_ROUND, HAD_ROUND);
        if (n->opening)
                n->opening = 0;
        answer_flush(n);
}

static void round_step(const struct state *s, unsigned i)
{
        struct state n = *s;
        struct image *image = &n.images[i], *other = &n.images[DESTINATION];
        const char *name = i ? "T" : "S";

        if (image->poisoned || (s->opening && i == top()))
                return;
        if (s->faults && image->phase) {
                n.faults = 0;
                image->poisoned = 1;
                explore_emit(&n, "a sync of %s fails", name);
                n = *s;
        }
        switch (image->phase) {
        case 0:
                if (image->for_flush != WANT_ROUND && image->for_job != WANT_ROUND &&
                        image->for_source != WANT_ROUND)
                        return;
                if (flags & ROUND_BEFORE_COPY && needs_other(&n, image)) {
                        if (other->for_source != HAD_ROUND) {
                                if (other->for_source)
                                        return;
                                other->for_source = WANT_ROUND;
                                explore_emit(&n, "round of S: asks T for one first");
                                return;
                        }
                        other->for_source = 0;
                }
                round_begin(&n, image);
                EMIT_UNSEEN(&n, "round of %s: (0)", name);
                return;
        case 1:
                if (i == SOURCE && !(flags & ROUND_BEFORE_COPY)) {
                        if (other->for_source == WANT_ROUND || other->for_source == IN_ROUND)
                                return;
                        other->for_source = 0;
                }
                round_write(image);
                EMIT_UNSEEN(&n, "round of %s: (1) is over, (2)", name);
                return;
        default:
                round_end(&n, image);
                EMIT_UNSEEN(&n, "round of %s: (3) is over", name);
                return;
        }
}

/* --- the merge --- */

static void read_source(const struct state *s)
{
        struct state n = *s;
        const struct image *source = &s->images[SOURCE], *destination = &s->images[DESTINATION];

        if (any_under_way(s) && !(flags & GATE_OPEN))
                return;
        if (!source->present) {
                n.job = JOB_CLEARED; /* what is left is to know that it is durable */
                n.images[SOURCE].for_job = WANT_ROUND;
                n.reader_before = s->reader != 0;
                EMIT_UNSEEN(&n, "nothing to copy");
                return;
        }
        for (unsigned i = 0; i < N_SECTORS; i++) {
                if (!has(source, i) || (flags & UP && has(destination, i)))
                        continue;
                n.copy_bits |= (uint8_t)(1u << i);
                n.copy[i] = source->data[i].cached;
        }
        n.job = JOB_READ;
        EMIT_UNSEEN(&n, "gate shut, the source is read");
}

static void clear_source(struct state *n)
{
        struct image *source = &n->images[SOURCE];

        if (flags & NO_FREE_RECORD)
                source->present = source->now = 0, source->was_freed = 1;
        else
                free_block(source);
        source->for_job = WANT_ROUND;
        n->job = JOB_CLEARED;
        n->reader_before = n->reader != 0;
}

static void write_copy(const struct state *s)
{
        struct state n = *s;
        struct image *destination = &n.images[DESTINATION];

        if (s->copy_bits && !has_place(destination))
                return;
        for (unsigned i = 0; i < N_SECTORS; i++)
                if (s->copy_bits >> i & 1)
                        item_write(&destination->data[i], s->copy[i]);
        if (s->copy_bits) {
                destination->unsynced = 1;
                complete(destination, s->copy_bits);
        }
        memset(n.copy, 0, sizeof(n.copy));
        n.copy_bits = 0;
        n.job = JOB_COPIED;
        if (flags & UP && !(flags & (NO_ROUND_UP | ROUND_WITH_CLEAR_UP)))
                destination->for_job = WANT_ROUND;
        n.reader_before = s->reader != 0;
        EMIT_UNSEEN(&n, flags & UP ? "T has the copy, gate open" : "T has the copy");
}

static void punch(const struct state *s)
{
        struct state n = *s;
        struct image *source = &n.images[SOURCE];

        if (s->reader_before && s->reader && !(flags & NO_GRACE))
                return;
        for (unsigned i = 0; i < N_SECTORS; i++)
                item_write(&source->data[i], GARBAGE);
        n.job = JOB_PUNCHED;
        EMIT_UNSEEN(&n, "S is punched");
}

static void job_step(const struct state *s)
{
        struct state n = *s;

        if (s->opening || s->is_for_reading)
                return;
        switch ((enum job)s->job) {
        case JOB_NONE:
                n.job = JOB_BEGUN;
                EMIT_UNSEEN(&n, "a merge begins");
                return;
        case JOB_BEGUN: read_source(s); return;
        case JOB_READ: write_copy(s); return;
        case JOB_COPIED:
                if (flags & UP && s->images[DESTINATION].for_job) {
                        if (s->images[DESTINATION].for_job != HAD_ROUND)
                                return;
                        n.images[DESTINATION].for_job = 0;
                }
                n.job = JOB_GRACE;
                if (flags & UP && s->reader_before && s->reader && !(flags & NO_GRACE_UP))
                        return;
                clear_source(&n);
                EMIT_UNSEEN(&n, "S is cleared in memory%s", flags & UP ? "" : ", gate open");
                return;
        case JOB_CLEARED:
                if (flags & PUNCH_EARLY) {
                        punch(s);
                        return;
                }
                if (s->images[SOURCE].for_job != HAD_ROUND)
                        return;
                n.images[SOURCE].for_job = 0;
                n.job = JOB_COMMITTED;
                EMIT_UNSEEN(&n, "the merge sees S's round ended");
                return;
        case JOB_COMMITTED: punch(s); return;
        case JOB_GRACE:
        case JOB_PUNCHED: return;
        }
}

/* --- a reader: one look a step, from the top, no gate --- */

enum { READS_UPPER = 1, LOOKS_LOWER, READS_LOWER, READS_NOTHING };

static void answer_read(const struct state *s)
{
        struct state n = *s;
        const struct image *image = &s->images[s->reader == READS_UPPER ? top() : !top()];
        unsigned value = s->reader == READS_NOTHING ? ZEROS : image->data[s->read_sector].cached;

        if (!may_read(s, s->read_sector, value, s->reader_knows))
                n.bad = 2;
        else if (s->n_read && s->last_read >= FROM_OP && s->last_read < FROM_SOURCE &&
                !may_read(s, s->read_sector, value, 1u << (s->last_read - FROM_OP)))
                n.bad = 3;
        n.last_read = flags & TWO_READS ? (uint8_t)value : 0;
        n.n_read++;
        n.reader = n.reader_before = n.reader_knows = 0;
        explore_emit(&n, "the read answers %u", value);
}

static void read_step(const struct state *s)
{
        struct state n = *s;
        const struct image *upper = &s->images[top()], *lower = &s->images[!top()];

        if (s->opening || !(flags & READ))
                return;
        switch (s->reader) {
        case 0:
                if (s->n_read >= (flags & TWO_READS ? 2 : 1))
                        return;
                n.reader_knows = s->answered;
                n.reader = has(upper, s->read_sector) ? READS_UPPER : LOOKS_LOWER;
                break;
        case LOOKS_LOWER:
                n.reader = has(lower, s->read_sector) ? READS_LOWER : READS_NOTHING;
                break;
        default: answer_read(s); return;
        }
        explore_emit(&n, "a read looks: %s",
                n.reader == READS_UPPER           ? "the upper image has it"
                        : n.reader == LOOKS_LOWER ? "the upper image has it not"
                        : n.reader == READS_LOWER ? "the lower image has it"
                                                  : "the lower image has it not");
}

/* --- a death, and the next opener --- */

static void replay(struct image *image, bool is_replayed)
{
        const struct half halves[2] = {image->old, image->new};
        struct image open = {.entry = image->entry,
                .bits = image->bits,
                .poisoned = image->poisoned,
                .was_freed = image->was_freed};

        for (unsigned i = 0; i < N_SECTORS; i++)
                open.data[i] = image->data[i];
        open.present = open.entry.cached;
        open.now = open.present ? open.bits.cached : 0;
        open.durable_entry = open.present;
        for (unsigned i = 0; i < 2 && is_replayed; i++) {
                if (halves[i].freed) {
                        open.present = open.now = 0;
                        open.new = halves[i];
                }
                if (halves[i].bits) {
                        open.present = 1;
                        open.now |= halves[i].bits;
                        open.new.bits |= halves[i].bits;
                }
        }
        *image = open;
}

static void sync_file(struct image *image)
{
        for (unsigned i = 0; i < N_SECTORS; i++) {
                image->data[i].since = 0;
                if (!(flags & TRUST_FILES) && !image->poisoned)
                        item_sync(&image->data[i]);
        }
        image->bits.since = image->entry.since = 0;
        if (flags & TRUST_FILES || image->poisoned)
                return;
        item_sync(&image->bits);
        item_sync(&image->entry);
}

static void death(const struct state *s)
{
        struct state n = *s;
        const struct image *lower = &s->images[!top()];
        bool poison = s->images[0].poisoned || s->images[1].poisoned;

        if (!(flags & DEATH) || s->deaths >= (explore_is_long() ? 2 : 1))
                return;
        n.deaths++;
        for (unsigned i = 0; i < N_OPS; i++) {
                if (n.op[i] != 1)
                        continue;
                n.op[i] = n.n_written[i] = n.target[i] = 0;
        }
        if (n.flush != 3)
                n.flush = n.flush_covers = 0;
        n.reader = n.reader_before = n.reader_knows = 0;
        n.job = JOB_NONE;
        n.copy_bits = n.copy[0] = n.copy[1] = 0;
        if (poison) {
                n.answered &= n.covered; /* E5: no more than that is promised */
                n.is_for_reading = 1;
        }
        for (unsigned i = 0; i < N_IMAGES; i++) {
                bool is_replayed = !n.images[i].poisoned;

                if (i == top() && lower->poisoned && !(flags & REPLAY_OVER_POISON))
                        is_replayed = false;
                sync_file(&n.images[i]);
                replay(&n.images[i], is_replayed);
        }
        if (!(flags & NOT_SETTLED) && !poison) {
                n.opening = 1;
                n.images[!top()].for_job = WANT_ROUND;
        }
        explore_emit(&n, "the process dies; files synced and records replayed");
}

static void opened(const struct state *s)
{
        struct state n = *s;
        struct image *lower = &n.images[!top()];

        if (s->job != JOB_NONE || lower->for_job != HAD_ROUND)
                return;
        lower->for_job = 0;
        explore_emit(&n, "the chain is open");
}

static void step(const void *state)
{
        const struct state *s = state;

        current = s;
        if (s->bad)
                return;
        for (unsigned i = 0; i < N_OPS; i++) {
                if (s->op[i] == 0)
                        start_op(s, i);
                else if (is_under_way(s, i))
                        go_on_with_op(s, i);
        }
        flush(s);
        round_step(s, SOURCE);
        round_step(s, DESTINATION);
        opened(s);
        if (s->images[!top()].for_job == WANT_NOTHING || s->job != JOB_NONE)
                job_step(s);
        read_step(s);
        death(s);
}

/* --- what it begins with --- */

static void init_image(struct image *image, unsigned bits, bool present, unsigned value)
{
        for (unsigned i = 0; i < N_SECTORS; i++)
                item_init(&image->data[i], bits >> i & 1 ? value : GARBAGE);
        item_init(&image->bits, present ? bits : 3);
        item_init(&image->entry, present ? HAS_BLOCK : NO_BLOCK);
        image->present = image->durable_entry = present;
        image->now = (uint8_t)bits;
}

static bool init(unsigned number)
{
        /* what each has at first: bits, 4 for no block */
        static const uint8_t starts[][2] = {{1, 0}, {3, 1}, {4, 1}, {1, 2}, {1, 4}, {2, 3}, {4, 4}};
        static const uint8_t ops[][2] = {{0, 2}, {0, 0}, {0, 1}, {1, 1}, {1, 2}, {2, 2}};
        bool is_long = explore_is_long(), is_small = !is_long && flags & DEATH;
        unsigned n_starts = is_long ? 7 : is_small ? 3 : 5;
        unsigned n_ops = is_long ? 6 : is_small ? 2 : 3, n_sectors = flags & READ ? 2 : 1;
        const uint8_t *start = starts[number / n_sectors / n_ops % n_starts];
        const uint8_t *op = ops[number / n_sectors % n_ops];
        struct state s;

        if (number >= n_starts * n_ops * n_sectors)
                return false;
        memset(&s, 0, sizeof(s));
        s.source_bits = start[0] & 3;
        s.destination_bits = start[1] & 3;
        s.what[0] = op[0];
        s.what[1] = op[1];
        s.read_sector = (uint8_t)(number % n_sectors);
        s.faults = flags & FAULT ? 1 : 0;
        init_image(&s.images[SOURCE], s.source_bits, start[0] != 4, FROM_SOURCE);
        init_image(&s.images[DESTINATION], s.destination_bits, start[1] != 4, FROM_DESTINATION);
        explore_emit(&s, "S has %u, T has %u (4: no block), operations on %u and %u (2: both)",
                start[0], start[1], op[0], op[1]);
        return true;
}

int main(void)
{
        static const struct model model = {sizeof(struct state), init, step, check};
        static const struct run runs[] = {
                {"down: power cuts", 0, false},
                {"down: one reader", READ, false},
                {"down: two reads", READ | TWO_READS, false},
                {"down: deaths", DEATH, false},
                {"down: a failed sync, deaths", DEATH | FAULT, false},
                {"down: a flush that passes over clean images", LOOKS, false},
                {"down: no round of T inside of S's", NO_ROUND_BELOW, true},
                {"down: T's round begun before S's (0)", ROUND_BEFORE_COPY, true},
                {"down: no record of the clear", DEATH | NO_FREE_RECORD, true},
                {"down: punched before S's round is over", PUNCH_EARLY, true},
                {"down: no grace before punching", READ | NO_GRACE, true},
                {"down: gate open during the copy", GATE_OPEN, true},
                {"down: writes to the leaf although nothing there holds the unit", WRITES_TO_LEAF,
                        true},
                {"down: a flush covers the leaf only", LOOKS | FLUSH_LEAF_ONLY, true},
                {"down: FUA by dsync in T alone", FUA_DSYNC, true},
                {"down: a flush looks at T first", LOOKS | DESTINATION_FIRST, false},
                {"down: the same, and S's round without metadata is a bare sync",
                        LOOKS | DESTINATION_FIRST | ROUND_BELOW_IF_METADATA, true},
                {"down: an opener that settles nothing before it serves", DEATH | NOT_SETTLED,
                        true},
                {"down: an opener that replays S over a poisoned T",
                        DEATH | FAULT | REPLAY_OVER_POISON, true},
                {"down: an opener that takes what it finds in the files for durable",
                        DEATH | LOOKS | TRUST_FILES, true},
                {"up: power cuts", UP, false},
                {"up: one reader", UP | READ, false},
                {"up: two reads", UP | READ | TWO_READS, false},
                {"up: deaths", UP | DEATH, false},
                {"up: a failed sync, deaths", UP | DEATH | FAULT, false},
                {"up: a flush that passes over clean images", UP | LOOKS, false},
                {"up: no grace between T's copy and the clear", UP | READ | NO_GRACE_UP, true},
                {"up: S's clear may be durable before T's copy", UP | NO_ROUND_UP, true},
                {"up: T's round inside of S's, no deaths", UP | ROUND_WITH_CLEAR_UP, false},
                {"up: T's round inside of S's, deaths", UP | ROUND_WITH_CLEAR_UP | DEATH, true},
                {"up: a block of zeros loses its place before S's clear is durable", UP | FREE_UP,
                        true},
                {"up: no second grace, before punching", UP | READ | NO_GRACE, false},
                {"up: gate open during the copy", UP | GATE_OPEN, true},
        };

        return explore_runs(&model, runs, sizeof(runs) / sizeof(runs[0]), &flags);
}
