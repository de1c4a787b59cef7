// Many threads in one IvfSearch, for the sanitizers: small integers, so that all of them must find the same.
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "checks.h"
#include "ivf_search.h"
#include "pack.h"
#include "parallel.h"
#include "search_pool.h"

using namespace vqdistill;

namespace {

// Rows for a few epochs; and so many that threads share the lists of a query.
constexpr std::size_t kRows = 80000, kHeavyRows = 800'000;
constexpr std::size_t kD = 16, kM = 16, kDsub = 1, kLists = 12, kQueries = 16, kBest = 10;

struct Arrays {
    std::vector<std::int64_t> list_offsets;
    std::vector<float> router, coarse, mean, rotation, codewords, queries, dense;
    std::vector<std::uint8_t> packed;
    bool quads = false;
    std::vector<std::uint32_t> allowed_rows;
    std::vector<std::int64_t> allowed_per_list = std::vector<std::int64_t>(kLists);

    AllowView allow() const { return {allowed_rows.data(), allowed_per_list.data()}; }
};

std::vector<float> integers(std::size_t n, std::mt19937& random) {
    std::vector<float> values(n);
    for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 9) - 4);
    return values;
}

Arrays random_arrays(std::size_t rows) {
    std::mt19937 random(2);
    Arrays arrays;
    for (std::size_t l = 0; l <= kLists; ++l)
        arrays.list_offsets.push_back(static_cast<std::int64_t>(l * rows / kLists));
    arrays.router = integers(kLists * kD, random);
    arrays.coarse = integers(kLists * kD, random);
    arrays.mean = integers(kD, random);
    arrays.rotation = integers(kM * kDsub * kD, random);
    arrays.codewords = integers(kM * kSub * kDsub, random);
    arrays.queries = integers(kQueries * kD, random);
    arrays.dense = integers(rows * kD, random);
    std::vector<std::uint8_t> codes(rows * kM);
    for (std::uint8_t& code : codes) code = random() % kSub;
    arrays.packed.resize(block_count(rows) * kM / 2 * kBlockRows);
    CHECK(pack_codes(codes.data(), rows, kM, arrays.packed.data()));
    arrays.quads = kM % (2 * kQuad) == 0 && active_kernels().scan_quads != nullptr;
    if (arrays.quads) to_quads(arrays.packed.data(), block_count(rows), kM);
    arrays.allowed_rows.resize(block_count(rows));
    for (std::uint32_t& bits : arrays.allowed_rows) bits = static_cast<std::uint32_t>(random());
    for (std::size_t l = 0; l < kLists; ++l)
        for (std::int64_t row = arrays.list_offsets[l]; row < arrays.list_offsets[l + 1]; ++row)
            arrays.allowed_per_list[l] += arrays.allowed_rows[row / kBlockRows] >> row % kBlockRows & 1;
    return arrays;
}

IndexView view_of(const Arrays& arrays, Metric metric, bool residual) {
    return {metric,
            residual,
            kLists,
            kD,
            kM,
            kDsub,
            arrays.quads,
            {{arrays.list_offsets.data(), arrays.packed.data()}},
            {},
            nullptr,
            {arrays.router.data()},
            {arrays.coarse.data()},
            arrays.mean.data(),
            arrays.rotation.data(),
            {arrays.codewords.data()},
            {},
            {}};
}

// The dense rows in a file that goes with it.
class DenseFile {
public:
    explicit DenseFile(const std::vector<float>& rows) : file_(std::tmpfile()), bytes_(rows.size() * sizeof(float)) {
        CHECK(file_ != nullptr && std::fwrite(rows.data(), 1, bytes_, file_) == bytes_ && std::fflush(file_) == 0);
    }
    ~DenseFile() { std::fclose(file_); }
    DenseFile(const DenseFile&) = delete;
    DenseFile& operator=(const DenseFile&) = delete;

    DiskTier tier() const { return DiskTier(fileno(file_), nullptr, bytes_, 0, DenseDtype::f32, kD, IoMode::pread); }

private:
    std::FILE* file_;
    std::size_t bytes_;
};

struct Found {
    std::vector<float> scores = std::vector<float>(kQueries * kBest);
    std::vector<std::int64_t> positions = std::vector<std::int64_t>(kQueries * kBest);
    bool operator==(const Found& other) const { return scores == other.scores && positions == other.positions; }
};

Found find(const IvfSearch& search, const Arrays& arrays, SearchOptions options, std::size_t threads) {
    Found found;
    QueryStats stats[kQueries];
    CallLimits limits;
    options.threads = threads;
    search.search(arrays.queries.data(), kQueries, options, limits, found.scores.data(), found.positions.data(), stats);
    for (const QueryStats& of_query : stats) {
        CHECK(of_query.lists >= 1 && of_query.codes > 0);
        CHECK(of_query.dense_rows <= of_query.candidates && (of_query.dense_rows > 0) == (options.refine > 0));
    }
    return found;
}

RangeHits find_range(const IvfSearch& search, const Arrays& arrays, std::size_t threads) {
    QueryStats stats[kQueries];
    CallLimits limits;
    const RangeOptions options{800.0f, 0.0f, false, {kLists}, {}, threads};
    return search.range_search(arrays.queries.data(), kQueries, options, limits, stats);
}

// A few lists, all of them, lists by how likely they are, rows that may not be found, verification of
// all candidates and of as many as it takes.
std::vector<SearchOptions> ways_to_search(const Arrays& arrays) {
    return {
        {kBest, {4}, 0, {}, {}, 1},
        {kBest, {kLists}, 0, {}, {}, 1},
        {kBest, {kLists, 0.5f, 10.0f}, 0, {}, {}, 1},
        {kBest, {kLists}, 60, {}, {}, 1},
        {kBest, {kLists}, 60, {0.5f, 10.0f}, arrays.allow(), 1},
    };
}

void check_concurrent_searches(const Arrays& arrays, Metric metric, bool residual) {
    const DenseFile dense(arrays.dense);
    const IvfSearch search(view_of(arrays, metric, residual), dense.tier());
    const std::vector<SearchOptions> ways = ways_to_search(arrays);
    std::vector<Found> wanted;
    for (const SearchOptions& options : ways) wanted.push_back(find(search, arrays, options, 1));
    const RangeHits in_range = find_range(search, arrays, 1);
    CHECK(metric == Metric::l2 || !in_range.positions.empty());
    std::vector<std::thread> callers;
    for (std::size_t caller = 0; caller < 4; ++caller)
        callers.emplace_back([&, caller] {
            for (std::size_t turn = 0; turn < ways.size(); ++turn) {
                const std::size_t way = (turn + caller) % ways.size();
                CHECK(find(search, arrays, ways[way], 1 + caller) == wanted[way]);
                const RangeHits hits = find_range(search, arrays, 1 + caller);
                CHECK(hits.positions == in_range.positions && hits.scores == in_range.scores);
            }
        });
    for (std::thread& caller : callers) caller.join();
}

// Every thread of a call ends when one is told to, and the engine serves the next call.
void check_calls_that_end_early(const Arrays& arrays) {
    const DiskTier no_dense(-1, nullptr, 0, 0, DenseDtype::none, kD, IoMode::automatic);
    const IvfSearch search(view_of(arrays, Metric::ip, true), no_dense);
    const SearchOptions options = ways_to_search(arrays)[1];
    const Found wanted = find(search, arrays, options, 1);
    std::vector<float> queries;
    for (std::size_t repeat = 0; repeat < 500; ++repeat)
        queries.insert(queries.end(), arrays.queries.begin(), arrays.queries.end());
    const std::size_t many = queries.size() / kD;
    std::vector<float> scores(many * kBest);
    std::vector<std::int64_t> positions(many * kBest);
    std::vector<QueryStats> stats(many);
    for (const std::size_t threads : {1, 3}) {
        SearchOptions slow = options;
        slow.threads = threads;
        std::size_t polls = 0;
        bool interrupted = false, timed_out = false;
        try {
            CallLimits limits(3600.0, [&] { return ++polls == 2; });
            search.search(queries.data(), many, slow, limits, scores.data(), positions.data(), stats.data());
        } catch (const Interrupted&) {
            interrupted = true;
        }
        CHECK(interrupted && polls == 2);
        try {
            CallLimits limits(0.01);
            search.search(queries.data(), many, slow, limits, scores.data(), positions.data(), stats.data());
        } catch (const TimedOut&) {
            timed_out = true;
        }
        CHECK(timed_out);
        CHECK(find(search, arrays, options, threads) == wanted);
    }
}

// One query whose last epochs pay for several threads.
void check_threads_share_lists(const Arrays& arrays) {
    const DiskTier no_dense(-1, nullptr, 0, 0, DenseDtype::none, kD, IoMode::automatic);
    const IvfSearch search(view_of(arrays, Metric::ip, false), no_dense);
    for (SearchOptions options : ways_to_search(arrays)) {
        options.refine = 0;
        std::vector<std::int64_t> wanted(kBest);
        for (const std::size_t threads : {1, 2, 3, 8}) {
            std::vector<float> scores(kBest);
            std::vector<std::int64_t> positions(kBest);
            QueryStats stats;
            CallLimits limits;
            options.threads = threads;
            search.search(arrays.queries.data(), 1, options, limits, scores.data(), positions.data(), &stats);
            if (threads == 1) wanted = positions;
            CHECK(positions == wanted);
        }
    }
}

// Calls of one query each, and room for what they find.
class Calls {
public:
    Calls(const IvfSearch& search, const Arrays& arrays, std::size_t n)
        : calls_(n), scores_(n * kBest), positions_(n * kBest), stats_(n) {
        for (std::size_t i = 0; i < n; ++i)
            calls_[i] = {&search,
                         arrays.queries.data() + i % kQueries * kD,
                         1,
                         {},
                         CallLimits::Clock::time_point::max(),
                         scores_.data() + i * kBest,
                         positions_.data() + i * kBest,
                         &stats_[i],
                         nullptr};
    }

    SearchCall& operator[](std::size_t i) { return calls_[i]; }

    void require_found(std::size_t i, const Found& wanted) const {
        CHECK(!calls_[i].failure && stats_[i].lists > 0);
        CHECK(std::equal(calls_[i].scores, calls_[i].scores + kBest, &wanted.scores[i % kQueries * kBest]));
        CHECK(std::equal(calls_[i].positions, calls_[i].positions + kBest, &wanted.positions[i % kQueries * kBest]));
    }

private:
    std::vector<SearchCall> calls_;
    std::vector<float> scores_;
    std::vector<std::int64_t> positions_;
    std::vector<QueryStats> stats_;
};

// Collects from a pool until as many calls have ended as it waits for.
class Collector {
public:
    void tell() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            told_ = true;
        }
        some_.notify_all();
    }

    void wait_for(SearchPool& pool, std::size_t n) {
        while (n > 0) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                some_.wait(lock, [this] { return told_; });
                told_ = false;
            }
            n -= pool.collect().size();
        }
    }

private:
    std::mutex mutex_;
    std::condition_variable some_;
    bool told_ = false;
};

void check_pool_finds_what_a_search_does(const Arrays& arrays) {
    const DenseFile dense(arrays.dense);
    const IvfSearch search(view_of(arrays, Metric::ip, true), dense.tier());
    const std::vector<SearchOptions> ways = ways_to_search(arrays);
    std::vector<Found> wanted;
    for (const SearchOptions& options : ways) wanted.push_back(find(search, arrays, options, 1));
    constexpr std::size_t kCalls = 600, kCallers = 3;
    Calls calls(search, arrays, kCalls);
    Collector collector;
    SearchPool pool(2, [&] { collector.tell(); });
    std::vector<std::thread> callers;
    for (std::size_t caller = 0; caller < kCallers; ++caller)
        callers.emplace_back([&, caller] {
            for (std::size_t i = caller; i < kCalls; i += kCallers) {
                calls[i].options = ways[i / 40 % ways.size()];
                pool.submit(&calls[i]);
            }
        });
    collector.wait_for(pool, kCalls);
    for (std::thread& caller : callers) caller.join();
    for (std::size_t i = 0; i < kCalls; ++i) calls.require_found(i, wanted[i / 40 % ways.size()]);
    CHECK(pool.stop().empty() && pool.collect().empty());
}

// While the only thread is held up, calls come that may be searched together, others, and one whose time is over.
void check_pool_shares_what_waits(const Arrays& arrays) {
    const DiskTier no_dense(-1, nullptr, 0, 0, DenseDtype::none, kD, IoMode::automatic);
    const IvfSearch search(view_of(arrays, Metric::ip, true), no_dense);
    const std::vector<SearchOptions> ways = ways_to_search(arrays);
    const Found wanted[] = {find(search, arrays, ways[0], 1), find(search, arrays, ways[1], 1)};
    constexpr std::size_t kCalls = 1 + SearchPool::kMostCalls + 4, kOther = 5, kLate = 9;
    Calls calls(search, arrays, kCalls);
    for (std::size_t i = 0; i < kCalls; ++i) calls[i].options = ways[i == kOther];
    calls[kLate].end = CallLimits::Clock::now();
    std::mutex mutex;
    std::condition_variable changed;
    bool held_up = false, go_on = false;
    std::vector<std::size_t> shares;
    std::size_t ended = 0;
    std::unique_ptr<SearchPool> pool;
    pool = std::make_unique<SearchPool>(1, [&] {
        std::unique_lock<std::mutex> lock(mutex);
        held_up = true;
        changed.notify_all();
        changed.wait(lock, [&] { return go_on; });
        shares.push_back(pool->collect().size());
        ended += shares.back();
        changed.notify_all();
    });
    pool->submit(&calls[0]);
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return held_up; });
    for (std::size_t i = 1; i < kCalls; ++i) pool->submit(&calls[i]);
    go_on = true;
    changed.notify_all();
    changed.wait(lock, [&] { return ended == kCalls; });
    lock.unlock();
    CHECK((shares == std::vector<std::size_t>{1, SearchPool::kMostCalls, 1, 3}));
    for (std::size_t i = 0; i < kCalls; ++i) {
        if (i != kLate) calls.require_found(i, wanted[i == kOther]);
    }
    bool timed_out = false;
    try {
        std::rethrow_exception(calls[kLate].failure);
    } catch (const TimedOut&) {
        timed_out = true;
    }
    CHECK(timed_out);
}

// Small calls run on other cores than the avoided one and leave a thread to large ones, which run anywhere.
void check_pool_avoids_a_core(const Arrays& arrays) {
#ifdef __linux__
    cpu_set_t given;
    CHECK(sched_getaffinity(0, sizeof given, &given) == 0);
    int avoided = 0;
    while (!CPU_ISSET(avoided, &given)) ++avoided;
    cpu_set_t others = given;
    CPU_CLR(avoided, &others);
    const bool alone = CPU_COUNT(&others) == 0;
    const DiskTier no_dense(-1, nullptr, 0, 0, DenseDtype::none, kD, IoMode::automatic);
    const IvfSearch search(view_of(arrays, Metric::ip, true), no_dense);
    constexpr std::size_t kLarge = SearchPool::kLarge, kCalls = 40;
    const std::vector<float> queries(kLarge * kD, 0.5f);
    for (const std::size_t q : {std::size_t{1}, kLarge - 1, kLarge}) {
        const bool large = q >= kLarge;
        std::vector<float> scores(kCalls * q * kBest);
        std::vector<std::int64_t> positions(kCalls * q * kBest);
        std::vector<QueryStats> stats(kCalls * q);
        std::vector<SearchCall> calls;
        for (std::size_t i = 0; i < kCalls; ++i)
            calls.push_back({&search, queries.data(), q, ways_to_search(arrays)[1],
                             CallLimits::Clock::time_point::max(), scores.data() + i * q * kBest,
                             positions.data() + i * q * kBest, stats.data() + i * q, nullptr});
        std::mutex mutex;
        std::set<std::thread::id> seen;
        Collector collector;
        const auto look = [&] {
            cpu_set_t now;
            CHECK(sched_getaffinity(0, sizeof now, &now) == 0);
            CHECK(CPU_EQUAL(&now, alone || large ? &given : &others));
            std::this_thread::sleep_for(std::chrono::milliseconds(1));  // so that another thread would come
            {
                const std::lock_guard<std::mutex> lock(mutex);
                seen.insert(std::this_thread::get_id());
            }
            collector.tell();
        };
        SearchPool pool(2, look, avoided);
        for (SearchCall& call : calls) pool.submit(&call);
        collector.wait_for(pool, kCalls);
        CHECK(pool.stop().empty());
        for (const SearchCall& call : calls) CHECK(call.failure == nullptr);
        CHECK(seen.size() == (large ? 2 : 1));
    }
#endif
}

// What no thread has taken when a pool stops is given back, and what one has can be collected.
void check_pool_stops(const Arrays& arrays) {
    const DiskTier no_dense(-1, nullptr, 0, 0, DenseDtype::none, kD, IoMode::automatic);
    const IvfSearch search(view_of(arrays, Metric::ip, true), no_dense);
    constexpr std::size_t kCalls = 200;
    const SearchOptions options = ways_to_search(arrays)[1];
    const Found wanted = find(search, arrays, options, 1);
    Calls calls(search, arrays, kCalls);
    SearchPool pool(1, [] {});
    for (std::size_t i = 0; i < kCalls; ++i) {
        calls[i].options = options;
        pool.submit(&calls[i]);
    }
    const std::size_t left = pool.stop().size();
    const std::size_t ended = pool.collect().size();
    CHECK(left + ended == kCalls);
    for (std::size_t i = 0; i < ended; ++i) calls.require_found(i, wanted);
}

void check_each_task_runs_once() {
    for (const std::size_t threads : {1, 2, 7})
        for (const std::size_t tasks : {0, 1, 5, 1000}) {
            std::vector<std::atomic<int>> runs(tasks);
            run_parallel(tasks, threads, [&](const auto& next) {
                for (std::size_t task = next(); task < tasks; task = next()) ++runs[task];
            });
            for (const std::atomic<int>& count : runs) CHECK(count == 1);
        }
}

void check_exception_reaches_the_caller() {
    for (const std::size_t threads : {1, 3}) {
        bool caught = false;
        try {
            run_parallel(100, threads, [&](const auto& next) {
                for (std::size_t task = next(); task < 100; task = next())
                    if (task == 5) throw std::system_error(EIO, std::generic_category());
            });
        } catch (const std::system_error& error) {
            caught = error.code().value() == EIO;
        }
        CHECK(caught);
    }
}

}  // namespace

int main() {
    const Arrays arrays = random_arrays(kRows);
    check_concurrent_searches(arrays, Metric::ip, false);
    check_concurrent_searches(arrays, Metric::ip, true);
    check_concurrent_searches(arrays, Metric::l2, false);
    check_calls_that_end_early(arrays);
    check_pool_finds_what_a_search_does(arrays);
    check_pool_shares_what_waits(arrays);
    check_pool_avoids_a_core(arrays);
    check_pool_stops(arrays);
    check_threads_share_lists(random_arrays(kHeavyRows));
    check_each_task_runs_once();
    check_exception_reaches_the_caller();
}
