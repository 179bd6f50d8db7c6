/* SPDX-License-Identifier: Apache-2.0 */
/* layers.c - one unit of a merge of two layers at once (E11): into the image below them, or into the
 * one above them, with rounds at any time, power cuts, a death and what an opener does then, and a
 * reader that looks at one layer a step.
 *
 * Three images, 0 the lowest, of one block of two sectors; the disk's content is what the topmost
 * that has a sector says, and stays so. Bits and entry of an image are one item here: drain.c looks
 * at them apart, and at the guest's writes. */
#include "tests/model/explore.h"

#include <string.h>

enum { N_IMAGES = 3, N_SECTORS = 2, TOP = N_IMAGES - 1 };
/* What a sector of a file holds: nothing that anybody has, image i's own (i + 1), or neither. */
enum { ZEROS, OWN, GARBAGE = OWN + N_IMAGES };

enum {
        /* what a run is about */
        UP = 1u << 0,
        READ = 1u << 1,
        DEATH = 1u << 2,
        /* what is left out */
        TOP_CLEARED_FIRST = 1u << 3,
        NO_CHAIN_OF_ROUNDS =
                1u << 4, /* each source's has the destination's inside, and no other's */
        NO_ROUND_OF_DESTINATION = 1u << 5,
        NO_GRACE = 1u << 6,
        NO_GRACE_UP = 1u << 7,
        PUNCH_EARLY = 1u << 8,
        SETTLE_TOP_DOWN = 1u << 9,
};

enum job { JOB_NONE, JOB_BEGUN, JOB_COPIED, JOB_ROUND, JOB_CLEARING, JOB_CLEARED };
enum want { WANT_NOTHING, WANT_ROUND, IN_ROUND, HAD_ROUND };

struct half {
        uint8_t freed, bits;
};

struct image {
        struct item data[N_SECTORS], has; /* the file */
        uint8_t now, durable;             /* memory */
        uint8_t phase, copied;            /* the round */
        struct half old, new;             /* the redo file */
        uint8_t for_upper, for_job;
        uint8_t cleared, clear_copied, committed, punched;
};

struct state {
        struct image images[N_IMAGES];
        uint8_t bits[N_IMAGES]; /* at first */
        uint8_t job, n_cleared;
        uint8_t opening; /* the image that is settled, + 1 */
        uint8_t reader, reader_image, reader_before;
        uint8_t deaths, bad;
};

enum { READER_LOOKS = 1, READER_READS, READER_FOUND_NOTHING };

static unsigned flags;

static unsigned destination(void)
{
        return flags & UP ? TOP : 0;
}

static unsigned lowest_source(void)
{
        return flags & UP ? 0 : 1;
}

/* Who has the sector, + 1; 0: nobody. */
static unsigned owner(const struct state *s, unsigned sector, bool at_first)
{
        for (unsigned i = N_IMAGES; i-- > 0;)
                if ((at_first ? s->bits[i] : s->images[i].now) >> sector & 1)
                        return i + 1;
        return 0;
}

static unsigned view(const struct state *s, unsigned sector)
{
        unsigned i = owner(s, sector, false);

        return i ? s->images[i - 1].data[sector].cached : ZEROS;
}

static const char *check_cut(const struct state *s, unsigned sector, unsigned content)
{
        for (unsigned i = N_IMAGES; i-- > 0;) {
                const struct image *image = &s->images[i];
                bool may_have = false, may_lack = false;

                for (unsigned bits = 0; bits < 4; bits++) {
                        if (!(image->has.possible >> bits & 1))
                                continue;
                        if (bits >> sector & 1)
                                may_have = true;
                        else
                                may_lack = true;
                }
                if (may_have && image->data[sector].possible != 1u << content)
                        return "power cut: a layer shows what it must not";
                if (!may_lack)
                        return NULL;
        }
        return content == ZEROS ? NULL : "power cut: the sector is in no layer";
}

static const char *check(const void *state)
{
        const struct state *s = state;

        if (s->bad)
                return "a read answers what it must not";
        for (unsigned sector = 0; sector < N_SECTORS; sector++) {
                unsigned content = owner(s, sector, true); /* image i's own is i + 1 */
                const char *broken = check_cut(s, sector, content);

                if (view(s, sector) != content)
                        return "the living see something else";
                if (broken)
                        return broken;
        }
        return NULL;
}

/* --- rounds: of any image, whenever it is dirty --- */

static struct image *image_below(struct state *n, unsigned i)
{
        if (flags & UP || n->job == JOB_NONE || i == 0)
                return NULL;
        if (i == 1 && flags & NO_ROUND_OF_DESTINATION)
                return NULL;
        return &n->images[flags & NO_CHAIN_OF_ROUNDS ? 0 : i - 1];
}

static bool is_dirty(const struct image *image)
{
        return image->now != image->durable || image->old.bits || image->new.bits ||
                image->old.freed || image->new.freed || (image->cleared && !image->committed);
}

static void sync_begin(struct image *image)
{
        item_sync_begin(&image->data[0]);
        item_sync_begin(&image->data[1]);
        item_sync_begin(&image->has);
}

static void sync_end(struct image *image)
{
        item_sync_end(&image->data[0]);
        item_sync_end(&image->data[1]);
        item_sync_end(&image->has);
}

static void want_to_have(uint8_t *want, uint8_t from, uint8_t to)
{
        if (*want == from)
                *want = to;
}

static void round_begin(struct state *n, unsigned i)
{
        struct image *image = &n->images[i], *below = image_below(n, i);

        want_to_have(&image->for_upper, WANT_ROUND, IN_ROUND);
        want_to_have(&image->for_job, WANT_ROUND, IN_ROUND);
        image->copied = image->now;
        image->clear_copied = image->cleared;
        if (image->new.freed)
                image->old = image->new;
        else
                image->old.bits |= image->new.bits;
        memset(&image->new, 0, sizeof(image->new));
        sync_begin(image);
        image->phase = 1;
        if (below)
                below->for_upper = WANT_ROUND;
}

static void round_end(struct state *n, unsigned i)
{
        struct image *image = &n->images[i];

        sync_end(image);
        image->durable = image->copied;
        image->committed |= image->clear_copied;
        image->phase = image->copied = image->clear_copied = 0;
        memset(&image->old, 0, sizeof(image->old));
        want_to_have(&image->for_upper, IN_ROUND, HAD_ROUND);
        want_to_have(&image->for_job, IN_ROUND, HAD_ROUND);
}

static void round_step(const struct state *s, unsigned i)
{
        struct state n = *s;
        struct image *image = &n.images[i], *below = image_below(&n, i);

        if (s->opening && s->opening != i + 1)
                return;
        switch (image->phase) {
        case 0:
                if (image->for_upper != WANT_ROUND && image->for_job != WANT_ROUND &&
                        !is_dirty(image))
                        return;
                if (below && below->for_upper)
                        return; /* only where two stand on one: one after the other */
                round_begin(&n, i);
                explore_emit(&n, "round of %u: (0)", i);
                return;
        case 1:
                if (below && below->for_upper) {
                        if (below->for_upper != HAD_ROUND)
                                return;
                        below->for_upper = 0;
                }
                sync_end(image);
                item_write(&image->has, image->copied);
                sync_begin(image);
                image->phase = 2;
                explore_emit(&n, "round of %u: (1) is over, (2)", i);
                return;
        default:
                round_end(&n, i);
                explore_emit(&n, "round of %u: (3) is over", i);
                return;
        }
}

/* --- the merge --- */

static void copy(struct state *n)
{
        struct image *to = &n->images[destination()];

        for (unsigned sector = 0; sector < N_SECTORS; sector++) {
                unsigned from = owner(n, sector, false);
                uint8_t bit = (uint8_t)(1u << sector);

                if (!from || from - 1 == destination())
                        continue;
                item_write(&to->data[sector], n->images[from - 1].data[sector].cached);
                to->new.bits |= (uint8_t)(bit & ~(unsigned)to->now);
                to->now |= bit;
        }
        n->job = JOB_COPIED;
}

static void clear(struct state *n)
{
        unsigned low = lowest_source();
        unsigned i = flags & TOP_CLEARED_FIRST ? low + 1 - n->n_cleared : low + n->n_cleared;
        struct image *image = &n->images[i];

        image->now = 0;
        image->cleared = 1;
        image->new.freed = 1;
        image->new.bits = 0;
        n->n_cleared++;
        n->job = n->n_cleared == N_IMAGES - 1 ? JOB_CLEARED : JOB_CLEARING;
        n->reader_before = n->reader != 0;
}

static void punch(const struct state *s, unsigned i)
{
        struct state n = *s;
        struct image *image = &n.images[i];

        if (!image->cleared || image->punched || (!image->committed && !(flags & PUNCH_EARLY)))
                return;
        if (s->reader_before && s->reader && !(flags & NO_GRACE))
                return;
        for (unsigned sector = 0; sector < N_SECTORS; sector++)
                item_write(&image->data[sector], GARBAGE);
        image->punched = 1;
        explore_emit(&n, "%u is punched", i);
}

static void job_step(const struct state *s)
{
        struct state n = *s;
        struct image *to = &n.images[destination()];

        if (s->opening)
                return;
        switch ((enum job)s->job) {
        case JOB_NONE:
                n.job = JOB_BEGUN;
                explore_emit(&n, "a merge begins");
                return;
        case JOB_BEGUN:
                copy(&n);
                explore_emit(&n, "%u has the copy", destination());
                return;
        case JOB_COPIED:
                n.job = flags & UP && !(flags & NO_ROUND_OF_DESTINATION) ? JOB_ROUND : JOB_CLEARING;
                if (n.job == JOB_ROUND)
                        to->for_job = WANT_ROUND;
                n.reader_before = s->reader != 0;
                explore_emit(&n, "copied");
                return;
        case JOB_ROUND:
                if (to->for_job != HAD_ROUND)
                        return;
                to->for_job = 0;
                n.job = JOB_CLEARING;
                explore_emit(&n, "the merge sees the round of %u ended", destination());
                return;
        case JOB_CLEARING:
                if (flags & UP && !(flags & NO_GRACE_UP) && s->reader_before && s->reader &&
                        s->n_cleared == 0)
                        return;
                clear(&n);
                explore_emit(&n, "%s of the two is cleared in memory",
                        s->n_cleared ? "the other" : "one");
                return;
        case JOB_CLEARED:
                punch(s, lowest_source());
                punch(s, lowest_source() + 1);
                return;
        }
}

/* --- a reader, of sector 0: the starts have everything for both --- */

static void read_step(const struct state *s)
{
        struct state n = *s;

        if (!(flags & READ) || s->opening)
                return;
        switch (s->reader) {
        case 0:
                n.reader = READER_LOOKS;
                n.reader_image = TOP;
                explore_emit(&n, "a read begins");
                return;
        case READER_LOOKS:
                if (s->images[s->reader_image].now & 1)
                        n.reader = READER_READS;
                else if (s->reader_image == 0)
                        n.reader = READER_FOUND_NOTHING;
                else
                        n.reader_image--;
                explore_emit(&n, "the read looks at %u: %s", s->reader_image,
                        n.reader == READER_READS ? "has it" : "has it not");
                return;
        default: {
                unsigned value = s->reader == READER_READS
                        ? s->images[s->reader_image].data[0].cached
                        : ZEROS;

                n.bad = value != owner(s, 0, true);
                n.reader = n.reader_image = n.reader_before = 0;
                explore_emit(&n, "the read answers %u", value);
                return;
        }
        }
}

/* --- a death, and the next opener --- */

static void replay(struct image *image)
{
        const struct half halves[2] = {image->old, image->new};
        struct image open = {.has = image->has, .punched = image->punched};

        for (unsigned sector = 0; sector < N_SECTORS; sector++) {
                open.data[sector] = image->data[sector];
                item_sync(&open.data[sector]);
        }
        item_sync(&open.has);
        open.now = open.durable = open.has.cached;
        for (unsigned i = 0; i < 2; i++) {
                if (halves[i].freed) {
                        open.now = 0;
                        open.new = halves[i];
                }
                open.now |= halves[i].bits;
                open.new.bits |= halves[i].bits;
        }
        *image = open;
}

static void death(const struct state *s)
{
        struct state n = *s;

        if (!(flags & DEATH) || s->deaths)
                return;
        n.deaths = 1;
        for (unsigned i = 0; i < N_IMAGES; i++)
                replay(&n.images[i]);
        n.job = JOB_NONE;
        n.n_cleared = 0;
        n.reader = n.reader_image = n.reader_before = 0;
        n.opening = flags & SETTLE_TOP_DOWN ? TOP : 1;
        explore_emit(&n, "the process dies; files synced and records replayed");
}

/* Parents are settled one after the other; the leaf serves when all are. */
static void open_step(const struct state *s)
{
        struct state n = *s;
        const struct image *image;

        if (!s->opening)
                return;
        image = &s->images[s->opening - 1];
        if (image->phase || is_dirty(image))
                return;
        n.opening =
                (uint8_t)(flags & SETTLE_TOP_DOWN ? s->opening - 1 : (s->opening + 1) % (TOP + 1));
        explore_emit(&n, n.opening ? "%u is settled" : "%u is settled, the chain is open",
                s->opening - 1);
}

static void step(const void *state)
{
        const struct state *s = state;

        if (s->bad)
                return;
        for (unsigned i = 0; i < N_IMAGES; i++)
                round_step(s, i);
        job_step(s);
        read_step(s);
        open_step(s);
        death(s);
}

static bool init(unsigned number)
{
        struct state s;

        if (number >= 64)
                return false;
        memset(&s, 0, sizeof(s));
        for (unsigned i = 0; i < N_IMAGES; i++) {
                struct image *image = &s.images[i];

                s.bits[i] = number >> 2 * i & 3;
                for (unsigned sector = 0; sector < N_SECTORS; sector++)
                        item_init(
                                &image->data[sector], s.bits[i] >> sector & 1 ? OWN + i : GARBAGE);
                item_init(&image->has, s.bits[i]);
                image->now = image->durable = s.bits[i];
        }
        explore_emit(&s, "bits, from the lowest: %u %u %u", s.bits[0], s.bits[1], s.bits[2]);
        return true;
}

int main(void)
{
        static const struct model model = {sizeof(struct state), init, step, check};
        static const struct run runs[] = {
                {"down: power cuts, a reader", READ, false},
                {"down: deaths", DEATH, false},
                {"down: the upper one cleared first, a reader", READ | TOP_CLEARED_FIRST, true},
                {"down: the upper one's round has the destination's inside only",
                        NO_CHAIN_OF_ROUNDS, true},
                {"down: no round of the destination", NO_ROUND_OF_DESTINATION, true},
                {"down: no grace", READ | NO_GRACE, true},
                {"down: punched before the round is over", PUNCH_EARLY, true},
                {"down: the opener settles from the top", DEATH | SETTLE_TOP_DOWN, true},
                {"up: power cuts, a reader", UP | READ, false},
                {"up: power cuts, a reader, the upper one cleared first",
                        UP | READ | TOP_CLEARED_FIRST, false},
                {"up: deaths", UP | DEATH, false},
                {"up: deaths, the opener settles from the top", UP | DEATH | SETTLE_TOP_DOWN,
                        false},
                {"up: no round of the destination before the clear", UP | NO_ROUND_OF_DESTINATION,
                        true},
                {"up: no grace between the copy and the clear", UP | READ | NO_GRACE_UP, true},
        };

        return explore_runs(&model, runs, sizeof(runs) / sizeof(runs[0]), &flags);
}
