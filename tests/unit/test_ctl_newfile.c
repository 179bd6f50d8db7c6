/* SPDX-License-Identifier: Apache-2.0 */
/* A file that is half there and has its name looks whole to whoever comes next; a file that was
 * replaced before its successor was whole is lost. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "vhdd/ctl/newfile.h"

static char folder[64];

static void enter(void)
{
        strcpy(folder, "/tmp/vhdd-newfile-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL);
        cr_assert(eq(int, chdir(folder), 0));
}

static void leave(void)
{
        DIR *dir = opendir(".");
        struct dirent *entry;

        while ((entry = readdir(dir)) != NULL)
                unlink(entry->d_name);
        closedir(dir);
        cr_assert(eq(int, chdir("/"), 0));
        rmdir(folder);
}

static unsigned count_files(void)
{
        DIR *dir = opendir(".");
        struct dirent *entry;
        unsigned n = 0;

        while ((entry = readdir(dir)) != NULL)
                n += entry->d_name[0] != '.';
        closedir(dir);
        return n;
}

static void put(const char *path, const char *text)
{
        FILE *file = fopen(path, "w");

        fputs(text, file);
        fclose(file);
}

static bool holds(const char *path, const char *text)
{
        char buf[64] = {0};
        FILE *file = fopen(path, "r");
        size_t n = file ? fread(buf, 1, sizeof(buf) - 1, file) : 0;

        if (file)
                fclose(file);
        return n == strlen(text) && strcmp(buf, text) == 0;
}

TestSuite(newfile, .init = enter, .fini = leave);

Test(newfile, has_its_name_only_when_it_is_whole)
{
        struct newfile *newfile = NULL;
        struct error err = ERROR_INIT;

        cr_assert(eq(int, newfile_begin("a", false, &newfile, &err), 0));
        cr_expect(eq(int, access("a", F_OK), -1));
        cr_expect(eq(int, file_write(newfile_file(newfile), "new", 3, 0, 0), 0));
        cr_expect(eq(int, newfile_commit(newfile, &err), 0));
        cr_expect(holds("a", "new"));
        cr_expect(eq(u32, count_files(), 1));
}

Test(newfile, leaves_nothing_when_it_is_abandoned)
{
        struct newfile *newfile = NULL;
        struct error err = ERROR_INIT;

        put("a", "old");
        cr_assert(eq(int, newfile_begin("a", true, &newfile, &err), 0));
        cr_expect(eq(int, file_write(newfile_file(newfile), "new", 3, 0, 0), 0));
        cr_expect(holds("a", "old"));
        newfile_abandon(newfile);
        cr_expect(holds("a", "old"));
        cr_expect(eq(u32, count_files(), 1));
}

/* Somebody made the file in the meantime: it is his. */
Test(newfile, does_not_replace_what_came_meanwhile)
{
        struct newfile *newfile = NULL;
        struct error err = ERROR_INIT;

        cr_assert(eq(int, newfile_begin("a", false, &newfile, &err), 0));
        put("a", "his");
        cr_expect(eq(int, newfile_commit(newfile, &err), -EEXIST));
        cr_expect(holds("a", "his"));
        cr_expect(eq(u32, count_files(), 1));
}

Test(newfile, replaces_what_a_link_points_to_and_not_the_link)
{
        struct newfile *newfile = NULL;
        struct error err = ERROR_INIT;
        struct stat st;

        put("target", "old");
        cr_assert(eq(int, symlink("target", "link"), 0));
        cr_assert(eq(int, newfile_begin("link", true, &newfile, &err), 0));
        cr_expect(eq(int, file_write(newfile_file(newfile), "new", 3, 0, 0), 0));
        cr_expect(eq(int, newfile_commit(newfile, &err), 0));
        cr_expect(holds("target", "new"));
        cr_assert(eq(int, lstat("link", &st), 0));
        cr_expect(eq(int, S_ISLNK(st.st_mode), 1));
}

Test(newfile, refuses_what_it_cannot_replace)
{
        struct newfile *newfile = NULL;
        struct error err = ERROR_INIT;

        put("a", "old");
        cr_assert(eq(int, symlink("nowhere", "dangling"), 0));
        cr_expect(eq(int, newfile_begin("a", false, &newfile, &err), -EEXIST));
        cr_expect(eq(int, newfile_begin(".", true, &newfile, &err), -EINVAL));
        cr_expect(eq(int, newfile_begin("", true, &newfile, &err), -EINVAL));
        cr_expect(eq(int, newfile_begin("b/", true, &newfile, &err), -EINVAL));
        cr_expect(eq(int, newfile_begin("/dev/null", true, &newfile, &err), -EINVAL));
        cr_expect(eq(int, newfile_begin("dangling", true, &newfile, &err), -ENOENT));
        cr_expect(eq(int, newfile_begin("no/such/folder", true, &newfile, &err), -ENOENT));
        cr_expect(newfile == NULL);
        cr_expect(holds("a", "old"));
}
