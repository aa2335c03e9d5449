#include "lookup.h"

#include <sys/stat.h>

#define PATH_LIMIT 4095 /* PATH_MAX without its NUL */
#define LINK_LIMIT 40   /* MAXSYMLINKS of Linux */
#define TYPE_DIRECTORY (S_IFDIR >> 12)
#define TYPE_LINK (S_IFLNK >> 12)

#define MAY_READ 4U
#define MAY_ENTER 1U

static const char access_acl[] = "system.posix_acl_access";

static enum cafs_outcome damaged(struct cafs_view *view, unsigned database, uint64_t number, const char *what)
{
    view->fault = (struct cafs_fault){database, number, what};
    return CAFS_DAMAGED;
}

enum cafs_outcome cafs_fetch(struct cafs_view *view, unsigned database, uint64_t number, const void *key,
                             size_t key_length, struct cafs_value *value)
{
    switch (view->get(view->of, database, key, key_length, value)) {
    case CAFS_ABSENT:
        return CAFS_NOT_FOUND;
    case CAFS_BROKEN:
        return damaged(view, database, number, "the page that has it cannot be read");
    case CAFS_GOT:
        break;
    }
    if (!cafs_unseal(database, key, key_length, value->data, &value->length))
        return damaged(view, database, number, "its value does not match its check");
    return CAFS_OK;
}

enum cafs_outcome cafs_fetch_inode(struct cafs_view *view, uint64_t ino, struct cafs_inode *inode)
{
    uint8_t key[CAFS_NUMBER_KEY];
    struct cafs_value value;

    cafs_number_key(key, ino);
    const enum cafs_outcome outcome = cafs_fetch(view, CAFS_INODES, ino, key, sizeof key, &value);
    if (outcome == CAFS_NOT_FOUND)
        return damaged(view, CAFS_INODES, ino, "a name leads to an inode that is not there");
    if (outcome != CAFS_OK)
        return outcome;
    if (!cafs_read_inode(inode, value.data, value.length))
        return damaged(view, CAFS_INODES, ino, "its record has a wrong length");
    return CAFS_OK;
}

static bool is_pending(const struct cafs_view *view, unsigned kind, uint64_t number, uint64_t hash)
{
    return view->pending != NULL && cafs_pending_test(view->pending, kind, number, hash);
}

static bool in_group(const struct cafs_caller *caller, uint32_t gid)
{
    if (caller->gid == gid)
        return true;
    for (size_t i = 0; i < caller->group_count; i++) {
        if (caller->groups[i] == gid)
            return true;
    }
    return false;
}

/* The owner's bits hold whatever an ACL says; for everybody else an ACL must be asked for. */
static enum cafs_outcome permitted(struct cafs_view *view, const struct cafs_caller *caller, uint64_t ino,
                                   const struct cafs_inode *inode, unsigned wanted)
{
    unsigned bits;

    if (caller->uid == 0)
        return CAFS_OK;
    if (inode->uid == caller->uid) {
        bits = inode->mode >> 6;
    } else {
        if (view->has_xattrs) {
            uint8_t key[CAFS_NUMBER_KEY + sizeof access_acl - 1];
            struct cafs_value value;
            cafs_number_key(key, ino);
            memcpy(key + CAFS_NUMBER_KEY, access_acl, sizeof access_acl - 1);
            const enum cafs_outcome outcome =
                cafs_fetch(view, CAFS_XATTRS, ino, key, sizeof key, &value);
            if (outcome != CAFS_NOT_FOUND)
                return outcome == CAFS_OK ? CAFS_FOREIGN : outcome;
        }
        bits = in_group(caller, inode->gid) ? inode->mode >> 3 : inode->mode;
    }
    return (bits & wanted) == wanted ? CAFS_OK : CAFS_FORBIDDEN;
}

/* -- the memo -------------------------------------------------------------------------------- */

#define KNOWN_PASSABLE 1U /* the caller may go through it */
#define KNOWN_FLAGS 2U    /* its flags were read ... */
#define KNOWN_PROBED 4U   /* ... and some name of it is away from its own place */

/* A directory on the way, and what is known of it at this commit. */
struct place {
    uint64_t ino;
    struct cafs_memo_slot *slot; /* NULL: nothing is kept of it */
};

static struct place root_place(struct cafs_view *view)
{
    struct place place = {CAFS_ROOT, view->memo != NULL ? &view->memo->root : NULL};

    if (place.slot != NULL && place.slot->commit != view->commit) {
        place.slot->commit = view->commit;
        place.slot->known = 0;
    }
    return place;
}

/* The slot that a name of a directory has; NULL: its name is too long to be kept. */
static struct cafs_memo_slot *memo_slot(struct cafs_view *view, uint64_t parent, uint64_t cookie, size_t length)
{
    if (view->memo == NULL || length > CAFS_MEMO_NAME)
        return NULL;
    return &view->memo->slots[(cookie ^ (parent * UINT64_C(0x9e3779b97f4a7c15) >> 32)) % CAFS_MEMO_SLOTS];
}

/* Names are compared, not only hashed: XXH3 has no key, so names that collide can be made. */
static bool memo_has(const struct cafs_view *view, const struct cafs_memo_slot *slot, uint64_t parent,
                     const uint8_t *name, size_t length)
{
    return slot != NULL && slot->commit == view->commit && slot->parent == parent &&
           slot->length == length && memcmp(slot->name, name, length) == 0;
}

static void memo_put(const struct cafs_view *view, struct cafs_memo_slot *slot, uint64_t parent,
                     const uint8_t *name, size_t length, uint64_t ino)
{
    if (slot == NULL)
        return;
    slot->commit = view->commit;
    slot->parent = parent;
    slot->ino = ino;
    slot->known = 0;
    slot->length = (uint8_t)length;
    memcpy(slot->name, name, length);
}

static void memo_learn(struct place place, unsigned what)
{
    if (place.slot != NULL)
        place.slot->known |= (uint8_t)what;
}

/* -- directories ----------------------------------------------------------------------------- */

/* Learn whether the caller may go through a directory. */
static enum cafs_outcome enter(struct cafs_view *view, const struct cafs_caller *caller, struct place place)
{
    struct cafs_inode inode;

    if (caller->uid == 0)
        return CAFS_OK;
    if (is_pending(view, CAFS_PENDING_INODE, place.ino, 0))
        return CAFS_PENDING;
    if (place.slot != NULL && place.slot->known & KNOWN_PASSABLE)
        return CAFS_OK;
    enum cafs_outcome outcome = cafs_fetch_inode(view, place.ino, &inode);
    if (outcome == CAFS_OK)
        outcome = permitted(view, caller, place.ino, &inode, MAY_ENTER);
    if (outcome == CAFS_OK)
        memo_learn(place, KNOWN_PASSABLE);
    return outcome;
}

/* Whether a name that is not at its own place may be at another. */
static enum cafs_outcome is_probed(struct cafs_view *view, struct place place, bool *probed)
{
    struct cafs_inode inode;

    if (place.slot != NULL && place.slot->known & KNOWN_FLAGS) {
        *probed = (place.slot->known & KNOWN_PROBED) != 0;
        return CAFS_OK;
    }
    const enum cafs_outcome outcome = cafs_fetch_inode(view, place.ino, &inode);
    if (outcome != CAFS_OK)
        return outcome;
    *probed = (inode.flags & CAFS_INODE_PROBED) != 0;
    memo_learn(place, KNOWN_FLAGS | (*probed ? KNOWN_PROBED : 0));
    return CAFS_OK;
}

/* One place of a directory.  CAFS_NOT_FOUND: it is free, or another name has it. */
static enum cafs_outcome look_at(struct cafs_view *view, uint64_t directory, uint64_t cookie,
                                 const uint8_t *name, size_t length, struct cafs_entry *entry)
{
    uint8_t key[CAFS_ENTRY_KEY];
    struct cafs_value value;

    cafs_entry_key(key, directory, cookie);
    const enum cafs_outcome outcome = cafs_fetch(view, CAFS_ENTRIES, directory, key, sizeof key, &value);
    if (outcome != CAFS_OK)
        return outcome;
    if (!cafs_read_entry(entry, value.data, value.length) || entry->ino == 0)
        return damaged(view, CAFS_ENTRIES, directory, "an entry of it has a wrong length or no inode");
    if (entry->name_length != length || memcmp(entry->name, name, length) != 0)
        return CAFS_NOT_FOUND;
    return CAFS_OK;
}

static enum cafs_outcome find_name(struct cafs_view *view, struct place directory, uint64_t cookie,
                                   const uint8_t *name, size_t length, struct cafs_entry *entry)
{
    bool probed;
    enum cafs_outcome outcome = look_at(view, directory.ino, cookie, name, length, entry);

    if (outcome != CAFS_NOT_FOUND)
        return outcome;
    /* That the flag may be pending does not matter: a name that was displaced since the newest
     * commit is marked by its own place, which was tested before. */
    outcome = is_probed(view, directory, &probed);
    if (outcome != CAFS_OK)
        return outcome;
    for (unsigned probe = 1; probed && probe < CAFS_PROBES; probe++) {
        cookie = cafs_next_cookie(cookie);
        outcome = look_at(view, directory.ino, cookie, name, length, entry);
        if (outcome != CAFS_NOT_FOUND)
            return outcome;
    }
    return CAFS_NOT_FOUND;
}

/* One step down: the inode of a name, and what kind it is of. */
static enum cafs_outcome step(struct cafs_view *view, struct place *at, const uint8_t *name, size_t length,
                              uint8_t *type)
{
    const uint64_t cookie = cafs_name_cookie(name, length);
    struct cafs_memo_slot *slot = memo_slot(view, at->ino, cookie, length);
    struct cafs_entry entry;

    if (is_pending(view, CAFS_PENDING_ENTRY, at->ino, cookie))
        return CAFS_PENDING;
    if (memo_has(view, slot, at->ino, name, length)) {
        *type = TYPE_DIRECTORY;
        *at = (struct place){slot->ino, slot};
        return CAFS_OK;
    }
    const enum cafs_outcome outcome = find_name(view, *at, cookie, name, length, &entry);
    if (outcome != CAFS_OK)
        return outcome;
    *type = entry.type;
    if (entry.type == TYPE_DIRECTORY)
        memo_put(view, slot, at->ino, name, length, entry.ino);
    else
        slot = NULL;
    *at = (struct place){entry.ino, slot};
    return CAFS_OK;
}

/* A path that is being walked; links put their targets in front of what is left. */
struct walk {
    const uint8_t *rest;
    size_t left;
    unsigned links;
    uint8_t pages[2][PATH_LIMIT];
};

static enum cafs_outcome follow(struct cafs_view *view, uint64_t link, bool slash, struct walk *walk)
{
    uint8_t key[CAFS_NUMBER_KEY];
    struct cafs_value target;

    if (++walk->links > LINK_LIMIT)
        return CAFS_FORBIDDEN;
    if (is_pending(view, CAFS_PENDING_INODE, link, 0))
        return CAFS_PENDING;
    cafs_number_key(key, link);
    const enum cafs_outcome outcome = cafs_fetch(view, CAFS_SYMLINKS, link, key, sizeof key, &target);
    if (outcome == CAFS_NOT_FOUND || (outcome == CAFS_OK && target.length == 0))
        return damaged(view, CAFS_SYMLINKS, link, "a symbolic link has no target");
    if (outcome != CAFS_OK)
        return outcome;
    /* What lies beyond the tree's root is the machine's: a mount would lead there, this does not. */
    if (target.data[0] == '/')
        return CAFS_FORBIDDEN;
    if (target.length + 1 + walk->left > PATH_LIMIT)
        return CAFS_NOT_FOUND;
    /* What is left lies in the path or in the other page. */
    uint8_t *page = walk->pages[walk->links & 1];
    memcpy(page, target.data, target.length);
    if (slash)
        page[target.length] = '/';
    memcpy(page + target.length + slash, walk->rest, walk->left);
    walk->left += target.length + slash;
    walk->rest = page;
    return CAFS_OK;
}

/* `..`; above the root is the machine's own tree. */
static enum cafs_outcome go_up(struct cafs_view *view, struct place *at)
{
    struct cafs_inode inode;

    if (at->ino == CAFS_ROOT)
        return CAFS_FORBIDDEN;
    if (is_pending(view, CAFS_PENDING_INODE, at->ino, 0))
        return CAFS_PENDING;
    const enum cafs_outcome outcome = cafs_fetch_inode(view, at->ino, &inode);
    if (outcome != CAFS_OK)
        return outcome;
    *at = inode.aux == CAFS_ROOT ? root_place(view) : (struct place){inode.aux, NULL};
    return CAFS_OK;
}

/* One component, which lies in the directory *at. */
static enum cafs_outcome walk_name(struct cafs_view *view, const uint8_t *name, size_t length, bool slash,
                                   struct place *at, struct walk *walk)
{
    const struct place directory = *at;
    uint8_t type;

    if (length == 1 && name[0] == '.')
        return CAFS_OK;
    if (length == 2 && name[0] == '.' && name[1] == '.')
        return go_up(view, at);
    const enum cafs_outcome outcome = step(view, at, name, length, &type);
    if (outcome != CAFS_OK)
        return outcome;
    if (type == TYPE_LINK) {
        const uint64_t link = at->ino;
        *at = directory;
        return follow(view, link, slash, walk);
    }
    return slash && type != TYPE_DIRECTORY ? CAFS_NOT_FOUND : CAFS_OK;
}

enum cafs_outcome cafs_lookup(struct cafs_view *view, const struct cafs_caller *caller, const uint8_t *path,
                              size_t length, struct cafs_node *node)
{
    struct place at = root_place(view);
    enum cafs_outcome outcome;
    struct walk walk;

    if (length > PATH_LIMIT)
        return CAFS_NOT_FOUND;
    walk.rest = path;
    walk.left = length;
    walk.links = 0;
    while (walk.left > 0) {
        const uint8_t *name = walk.rest;
        const uint8_t *slash = memchr(name, '/', walk.left);
        const size_t name_length = slash != NULL ? (size_t)(slash - name) : walk.left;
        walk.rest += name_length + (slash != NULL);
        walk.left -= name_length + (slash != NULL);
        if (name_length == 0)
            continue;
        if (name_length > CAFS_NAME_MAX)
            return CAFS_NOT_FOUND;
        outcome = enter(view, caller, at);
        if (outcome == CAFS_OK)
            outcome = walk_name(view, name, name_length, slash != NULL, &at, &walk);
        if (outcome != CAFS_OK)
            return outcome;
    }
    if (is_pending(view, CAFS_PENDING_INODE, at.ino, 0))
        return CAFS_PENDING;
    node->ino = at.ino;
    outcome = cafs_fetch_inode(view, at.ino, &node->inode);
    if (outcome != CAFS_OK)
        return outcome;
    return permitted(view, caller, at.ino, &node->inode, MAY_READ);
}
