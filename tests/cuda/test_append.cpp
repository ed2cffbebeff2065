/* Append beside the C core: the same page numbers, owners, free pages, slots, positions, bits of keys, values and queries, over
 * steps of one token and of many, of all rows and of some, after forks and crops; tokens of any dtype and strides; numbers
 * that are not finite and pools that run out are reported. */
#include "beside.h"

using namespace check;

static int64_t steps, tokens, prompts, copies, faults, refusals;

static std::vector<int> draw_fresh(const beside &x, int most_new)
{
    std::vector<int> fresh(x.shape.rows);
    for (int &n : fresh)
        n = below(4) ? below(most_new + 1) : most_new;
    fresh[below(x.shape.rows)] = most_new;
    return fresh;
}

static bool fits(const beside &x, const new_tokens &t)
{
    for (int pair = 0; pair < x.pairs; pair++)
        if (x.layer->slots[pair] + t.fresh(pair / x.shape.heads) > x.shape.pages * PAGE)
            return false;
    return true;
}

/* A pool with a page too few, or lists without room: a fault, and nothing else happens. */
static bool check_refusal(beside &x, const new_tokens &t, int64_t pages, bool room)
{
    const std::vector<char> before = x.snapshot();
    if (room)
        x.there->free_count = (int32_t)pages - 1;
    const int32_t free_count = x.there->free_count;
    const int error = x.append(t);
    const bool told = x.l.fault[0] == RA_CUDA_FAULT_PAGES && x.there->free_count == free_count;
    x.l.fault[0] = 0;
    if (room)
        memcpy(&x.there->free_count, before.data() + offsetof(ra_cuda_pool, free_count), sizeof(int32_t));
    refusals++;
    if (error || !told)
        return fail("%s: a pool without pages: error %d, fault %s", x.name().c_str(), error,
                    told ? "told" : "not told");
    if (x.snapshot() != before)
        return fail("%s: a pool without pages has changed something", x.name().c_str());
    return true;
}

/* A number that is not finite in the pages' format. */
static bool check_not_finite(beside &x, new_tokens &t)
{
    const int row = below(x.shape.rows), which = 1 + below(2), head = below(x.shape.heads), c = below(x.shape.dim);
    if (!t.fresh(row))
        return true;
    const ra_dtype dtype = t.tensor[which].dtype, format = x.shape.format;
    char *element = t.element(which, row, head, below(t.fresh(row)), c), old[4];
    const size_t size = ra_dtype_size(dtype);
    const float numbers[] = {NAN, INFINITY, -INFINITY, 65519.9f, -65520.0f, 3.3961776e38f, 3.0e38f};
    memcpy(old, element, size);
    x.set_element(element, dtype, numbers[below(7)]);
    const bool good = is_finite(as_stored(load_element(element, 0, dtype), format));
    const std::vector<char> before = x.snapshot();
    const int error = x.append(t);
    if (x.l.fault[0] & RA_CUDA_FAULT_PAGES) { /* another check's */
        memcpy(element, old, size);
        x.restore(before);
        return true;
    }
    bool right = !error;
    for (int r = 0; r < x.shape.rows; r++)
        right &= x.l.fault[r] == (r == row && !good ? RA_CUDA_FAULT_TOKENS : 0);
    if (!right)
        return fail("%s: number %g of dtype %d: error %d, fault %u", x.name().c_str(),
                    (double)load_element(element, 0, dtype), dtype, error, x.l.fault[row]);
    memcpy(element, old, size);
    x.restore(before);
    faults++;
    return true;
}

static bool one_step(beside &x, int most_new)
{
    new_tokens t;
    x.draw(t, most_new, below(3) ? draw_fresh(x, most_new) : std::vector<int>());
    if (!fits(x, t)) {
        if (!check_refusal(x, t, 0, false))
            return false;
        x.release(below(x.shape.rows));
        return true;
    }
    if (below(4) == 0 && !check_not_finite(x, t))
        return false;
    const int64_t free_before = x.pool->free_count, shared_before = x.pool->info.shared;
    if (!x.step(t)) {
        x.release(below(x.shape.rows));
        return true;
    }
    copies += shared_before > x.pool->info.shared;
    const int64_t pages = free_before - x.pool->free_count;
    if (pages && below(4) == 0 && !check_refusal(x, t, pages, true))
        return false;
    if (x.append(t))
        return fail("%s: launch", x.name().c_str());
    (most_new > 1 ? prompts : tokens)++;
    if (x.there->least_free > x.there->free_count)
        return fail("%s: least_free", x.name().c_str());
    return x.same(most_new > 1 ? "several tokens" : "a token");
}

static void run(const beside_shape &shape, int count, int longest)
{
    beside x(shape);
    for (int i = 0; i < count; i++, steps++) {
        emulate::options().seed = below(3) ? (unsigned)below(1000) : 0;
        const int what = below(24);
        if (what < 3)
            x.fork();
        else if (what == 3)
            x.reorder();
        if (below(6) == 0) /* so that rows share a tail and hold different numbers of its slots */
            x.crop(below(2) ? 20 : 4);
        if (what == 4)
            x.release(below(shape.rows));
        bool good = true;
        if (what < 17)
            good = one_step(x, 1);
        else
            good = one_step(x, what < 22 ? 2 + below(20) : 1 + below(longest));
        if (!good)
            return;
    }
}

int main(int count, char **arguments) /* another seed of the numbers, if any */
{
    seconds();
    if (count > 1)
        state() = (uint64_t)std::atoll(arguments[1]);
    const int dims[] = {1, 5, 16, 64, 80, 128, 256, 1024, 20, 33};
    for (int dim : dims)
        for (int format = 0; format < RA_DTYPES; format++) {
            beside_shape shape;
            shape.format = (ra_dtype)format, shape.dim = dim;
            shape.rows = 1 + below(5), shape.heads = 1 + below(4);
            shape.group = below(6) ? 1 + below(5) : 64 / (1 + below(3));
            shape.window = below(4) ? 1 + below(9) : 30;
            shape.all_pages = dim > 128 ? 60 : 200;
            shape.pages = 8 + below(20);
            run(shape, dim > 128 ? 25 : 60, 150);
        }
    /* More heads than a block has threads, and long prompts. */
    beside_shape many;
    many.format = RA_BF16, many.dim = 8, many.rows = 50, many.heads = 3, many.group = 1, many.all_pages = 1000;
    run(many, 25, 40);
    beside_shape longer;
    longer.dim = 3, longer.rows = 2, longer.heads = 1, longer.pages = 200, longer.all_pages = 500;
    run(longer, 12, 2500);
    std::printf(
        "append: %lld steps (%lld of one token, %lld of several, %lld that copied shared tails), %lld numbers that are "
        "not finite or hardly, %lld pools too small; %d bad, %.1f s\n",
        (long long)steps, (long long)tokens, (long long)prompts, (long long)copies, (long long)faults,
        (long long)refusals, failures(), seconds());
    return failures() > 0;
}
