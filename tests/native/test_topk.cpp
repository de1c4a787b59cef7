// TopR against sorting everything.
#include <cmath>
#include <random>

#include "checks.h"
#include "topk.h"

using vqdistill::better;
using vqdistill::Scored;
using vqdistill::TopR;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<Scored> expected(std::vector<Scored> items, std::size_t r) {
    const auto worthless = [](const Scored& item) { return std::isnan(item.score) || item.score == -kInf; };
    items.erase(std::remove_if(items.begin(), items.end(), worthless), items.end());
    std::sort(items.begin(), items.end(), better);
    if (items.size() > r) items.resize(r);
    return items;
}

void check_best(TopR& top, const std::vector<Scored>& items, std::size_t r) {
    const auto found = top.best();
    std::sort(found.begin(), found.end(), better);
    const std::vector<Scored> wanted = expected(items, r);
    CHECK(found.size == wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i)
        CHECK(found[i].score == wanted[i].score && found[i].id == wanted[i].id && found[i].tag == wanted[i].tag);
}

void check_stream(TopR& top, const std::vector<Scored>& items, std::size_t r) {
    for (const std::size_t batch : {1, 7, 1000}) {
        top.reset(r);
        float bar = -kInf;
        for (std::size_t first = 0; first < items.size(); first += batch) {
            if (batch == 1)
                top.push(items[first]);
            else
                top.push_all(std::min(batch, items.size() - first), [&](std::size_t i) { return items[first + i]; });
            CHECK(top.bar().score >= bar);  // it never falls
            bar = top.bar().score;
        }
        check_best(top, items, r);
    }
}

float score_of(int kind, std::size_t i, std::mt19937& random) {
    switch (kind) {
        case 0:
            return std::normal_distribution<float>()(random);
        case 1:
            return static_cast<float>(random() % 5);  // many ties
        case 2:
            return static_cast<float>(i);
        case 3:
            return -static_cast<float>(i);
        case 4:
            return 1.0f;
        case 5:
            return random() % 3 == 0 ? std::nanf("") : random() % 2 == 0 ? -kInf : kInf;
        case 6:
            return 1000.0f + 0x1p-14f * static_cast<float>(random() % 500);  // neighbours among floats
        case 7:
            return std::ldexp(random() % 2 == 0 ? 1.0f : -1.0f, static_cast<int>(random() % 276) - 149);  // of all sizes
        case 8:
            return std::ldexp(static_cast<float>(random() % 1000) - 999.0f, -149 + static_cast<int>(random() % 3));
        default:
            return std::sin(static_cast<float>(i));
    }
}

}  // namespace

int main() {
    std::mt19937 random(1);
    TopR top;  // one for all streams: a reset must forget everything
    for (int kind = 0; kind < 10; ++kind)
        for (std::size_t n : {0, 1, 2, 33, 100, 5000})
            for (std::size_t r : {1, 2, 10, 100, 5000}) {
                std::vector<Scored> items(n);
                for (std::size_t i = 0; i < n; ++i)
                    items[i] = {score_of(kind, i, random), static_cast<std::uint32_t>(i % 7),
                                static_cast<std::int64_t>(i)};
                check_stream(top, items, r);
                std::shuffle(items.begin(), items.end(), random);
                check_stream(top, items, r);
            }
    // The bar follows the worst of the best r closely, or a scan would find far too much.
    std::vector<float> scores;
    top.reset(100);
    for (int batch = 0; batch < 1000; ++batch) {
        top.push_all(100, [&](std::size_t) {
            const float score = std::normal_distribution<float>()(random);
            scores.push_back(score);
            return Scored{score, 0, static_cast<std::int64_t>(scores.size())};
        });
        if (batch < 10) continue;
        const float bar = top.bar().score;
        const auto passing = std::count_if(scores.begin(), scores.end(), [&](float score) { return score > bar; });
        CHECK(passing >= 99 && passing <= 130);
    }
    // Streams that are cut once or twice, so that nothing makes up for an item that was lost.
    for (int repeat = 0; repeat < 5000; ++repeat) {
        const std::size_t r = 30 + random() % 20;
        std::vector<Scored> items(2 * r + 32 + random() % 30);
        for (std::size_t i = 0; i < items.size(); ++i)
            items[i] = {score_of(repeat % 2, i, random), 0, static_cast<std::int64_t>(i)};
        check_stream(top, items, r);
    }
}
