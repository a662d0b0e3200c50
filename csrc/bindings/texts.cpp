#include <memory>
#include <utility>
#include <vector>

#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "bindings/text_views.h"
#include "core/contamination_index.h"
#include "core/near_duplicates.h"

namespace dsm::bindings {
namespace {

py::tuple fingerprint_texts(const py::sequence& texts, int threads) {
  const py::tuple kept(texts);  // a list might change while other threads run
  const std::vector<std::string_view> views = utf8_views(kept);
  const auto n = static_cast<int64_t>(views.size());
  Buffer<uint64_t> exact(n);
  Buffer<uint64_t> numbers(n);
  Buffer<uint8_t> signatures(n * signature_size);
  {
    const py::gil_scoped_release release;
    dsm::fingerprint_texts(views, threads, exact.span(), numbers.span(), signatures.span());
  }
  return py::make_tuple(release_to_numpy(std::move(exact)), release_to_numpy(std::move(numbers)),
                        release_to_numpy(std::move(signatures)).attr("reshape")(n, signature_size));
}

// The GIL is kept: a document takes a microsecond, and two threads must not add at once.
py::tuple add_documents(DuplicateFinder& finder, const Array<uint64_t>& exact,
                        const Array<uint64_t>& numbers, const Array<uint8_t>& signatures) {
  const py::ssize_t n = exact.size();
  if (numbers.size() != n || signatures.size() != n * signature_size) {
    throw py::value_error("as many numbers and signatures as exact fingerprints");
  }
  Buffer<uint8_t> verdicts(n);
  Buffer<int64_t> of(n);
  finder.add_all(view(exact), view(numbers), view(signatures), verdicts.span(), of.span());
  return py::make_tuple(release_to_numpy(std::move(verdicts)), release_to_numpy(std::move(of)));
}

ContaminationIndex make_index(int64_t ngram, int64_t shortest, int64_t chinese_ngram,
                              int64_t chinese_shortest) {
  return {{ngram, shortest}, {chinese_ngram, chinese_shortest}};
}

py::array add_texts(ContaminationIndex& index, const py::sequence& texts, bool chinese) {
  const py::tuple kept(texts);
  const std::vector<std::string_view> views = utf8_views(kept);
  Buffer<uint8_t> coverage(static_cast<int64_t>(views.size()));
  const TextLanguage language = chinese ? TextLanguage::chinese : TextLanguage::english;
  for (size_t i = 0; i < views.size(); ++i) {
    coverage[static_cast<int64_t>(i)] = static_cast<uint8_t>(index.add(views[i], language));
  }
  return release_to_numpy(std::move(coverage));
}

py::tuple find_texts(const ContaminationIndex& index, const py::sequence& questions,
                     const py::sequence& answers, int threads) {
  const py::tuple kept_questions(questions);
  const py::tuple kept_answers(answers);
  const std::vector<std::string_view> question_views = utf8_views(kept_questions);
  const std::vector<std::string_view> answer_views = utf8_views(kept_answers);
  if (question_views.size() != answer_views.size()) {
    throw py::value_error("as many answers as questions");
  }
  const auto n = static_cast<int64_t>(question_views.size());
  Buffer<int64_t> texts(n);
  Buffer<uint8_t> kinds(n);
  {
    const py::gil_scoped_release release;
    index.find_all(question_views, answer_views, threads, texts.span(), kinds.span());
  }
  return py::make_tuple(release_to_numpy(std::move(texts)), release_to_numpy(std::move(kinds)));
}

}  // namespace

std::vector<std::string_view> utf8_views(const py::tuple& strings) {
  std::vector<std::string_view> views;
  views.reserve(strings.size());
  for (const py::handle& string : strings) {
    Py_ssize_t size = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(string.ptr(), &size);
    if (bytes == nullptr) throw py::error_already_set();
    views.emplace_back(bytes, static_cast<size_t>(size));
  }
  return views;
}

void bind_texts(py::module_& module) {
  module.def("fingerprint_texts", &fingerprint_texts, py::arg("texts"), py::kw_only(),
             py::arg("threads"));
  py::class_<DuplicateFinder>(module, "DuplicateFinder")
      .def(py::init<double>(), py::arg("threshold"))
      .def_property_readonly("num_documents", &DuplicateFinder::num_documents)
      .def("add", &add_documents, py::arg("exact").noconvert(), py::arg("numbers").noconvert(),
           py::arg("signatures").noconvert());
  py::class_<ContaminationIndex>(module, "ContaminationIndex")
      .def(py::init(&make_index), py::kw_only(), py::arg("ngram"), py::arg("shortest"),
           py::arg("chinese_ngram"), py::arg("chinese_shortest"))
      .def_property_readonly("num_texts", &ContaminationIndex::num_texts)
      .def("add", &add_texts, py::arg("texts"), py::kw_only(), py::arg("chinese"))
      .def("find", &find_texts, py::arg("questions"), py::arg("answers"), py::kw_only(),
           py::arg("threads"));
}

}  // namespace dsm::bindings
