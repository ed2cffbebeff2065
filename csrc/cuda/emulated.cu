/* What the host sets of the emulation, and its graphs. */
#include "machine.cuh"

#ifdef RA_EMULATE
#include "launch.h"

struct ra_emulate_graph {
    std::vector<emulate::node> nodes;
};

extern "C" void ra_emulate_order(unsigned seed) { emulate::options().seed = seed; }

extern "C" int ra_emulate_begin(void)
{
    if (emulate::recording())
        return 1;
    emulate::recording() = new std::vector<emulate::node>();
    return 0;
}

extern "C" ra_emulate_graph *ra_emulate_end(void)
{
    std::vector<emulate::node> *nodes = emulate::recording();
    if (!nodes)
        return nullptr;
    ra_emulate_graph *graph = new ra_emulate_graph{std::move(*nodes)};
    delete nodes;
    emulate::recording() = nullptr;
    return graph;
}

extern "C" int ra_emulate_capturing(void) { return emulate::recording() != nullptr; }

extern "C" int ra_emulate_record_copy(void *to, const void *from, size_t bytes)
{
    emulate::recording()->push_back({"copy", [=] {
                                         memcpy(to, from, bytes);
                                         return 0;
                                     }});
    return 0;
}

extern "C" int ra_emulate_replay(const ra_emulate_graph *graph)
{
    int error = 0;
    for (size_t i = 0; i < graph->nodes.size() && !error; i++)
        error = graph->nodes[i].run();
    return error;
}

extern "C" const char *ra_emulate_node(const ra_emulate_graph *graph, size_t i)
{
    return i < graph->nodes.size() ? graph->nodes[i].name.c_str() : nullptr;
}

extern "C" void ra_emulate_free(ra_emulate_graph *graph) { delete graph; }
#endif
