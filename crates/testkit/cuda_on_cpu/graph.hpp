// Calls that are kept, to be made whenever the graph of them is launched. What was asked of a stream is a lane; lanes meet at marks, which
// one of them passes and others wait for.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

namespace device {

struct Kept {
    // Does something, or passes a mark, or waits for one.
    std::function<void()> work;
    bool passes, waits;
    size_t mark;
};

struct Graph {
    // The first is that of the stream where it began.
    std::vector<std::vector<Kept>> lanes{1};
    // On which lane each is passed.
    std::vector<size_t> marks;

    // Goes along the first lane, and along others as far as that waits for them; or as far as they do not wait themselves, if they are to
    // be early. Tells whether that was all.
    bool run(bool works, bool early) const {
        std::vector<size_t> at(lanes.size());
        std::vector<bool> passed(marks.size());
        std::function<void(size_t)> step = [&](size_t lane) {
            const Kept& it = lanes[lane][at[lane]++];
            if (it.waits)
                while (!passed[it.mark]) step(marks[it.mark]);
            if (it.passes) passed[it.mark] = true;
            if (it.work && works) it.work();
        };
        auto is_free = [&](size_t lane) {
            if (at[lane] == lanes[lane].size()) return false;
            const Kept& it = lanes[lane][at[lane]];
            return !it.waits || passed[it.mark];
        };
        while (at[0] < lanes[0].size()) {
            step(0);
            for (size_t lane = 1; early && lane < lanes.size(); lane++)
                while (is_free(lane)) step(lane);
        }
        for (size_t lane = 0; lane < lanes.size(); lane++)
            if (at[lane] < lanes[lane].size()) return false;
        return true;
    }

    // Leaves out the last thing that is done on the first lane.
    void tear() {
        auto& first = lanes[0];
        auto last = std::find_if(first.rbegin(), first.rend(), [](const Kept& it) { return bool(it.work); });
        if (last != first.rend()) last->work = nullptr;
    }
};

// What is being kept, of streams that are on a lane of it.
struct Capture {
    Graph graph;
    // Whether something was asked for that cannot be kept.
    bool spoilt = false;
};

}  // namespace device
