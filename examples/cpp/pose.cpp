// Poses in photos: pose MODELS PHOTO..., where MODELS is the folder of finder-s.onnx and
// cfpose-s.onnx. Prints a JSON object a line and person. onnxruntime's C++ API and OpenCV.

#include <onnxruntime_cxx_api.h>
#include <algorithm>
#include <array>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <string>
#include <vector>

struct Person {
  cv::Vec4f box;  // x1, y1, x2, y2 in pixels
  float score;
};

// A graph and the spec that it carries in its metadata.
struct Graph {
  Ort::Session session;
  cv::FileStorage spec;

  Graph(const Ort::Env& env, const std::filesystem::path& file, const char* key)
      : session(env, file.c_str(), Ort::SessionOptions()) {
    Ort::AllocatorWithDefaultOptions memory;
    auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, memory);
    if (!text) throw std::runtime_error(file.string() + " has no " + key + " in its metadata");
    spec.open(text.get(), cv::FileStorage::READ | cv::FileStorage::MEMORY);
  }

  cv::Size size() { return cv::Size(spec["size_wh"][0], spec["size_wh"][1]); }

  // A BGR picture through the graph, which would take several at once too.
  std::vector<Ort::Value> run(const char* input, cv::Mat& bgr, std::array<const char*, 2> outputs) {
    const int64_t shape[] = {1, bgr.rows, bgr.cols, 3};
    auto cpu = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    auto tensor = Ort::Value::CreateTensor<uint8_t>(cpu, bgr.data, bgr.total() * 3, shape, 4);
    return session.Run(Ort::RunOptions(), &input, &tensor, 1, outputs.data(), outputs.size());
  }
};

float iou(const cv::Vec4f& a, const cv::Vec4f& b) {
  const cv::Rect2f first(a[0], a[1], a[2] - a[0], a[3] - a[1]);
  const cv::Rect2f second(b[0], b[1], b[2] - b[0], b[3] - b[1]);
  const float shared = (first & second).area();
  return shared / (first.area() + second.area() - shared);
}

std::vector<Person> find(Graph& finder, const cv::Mat& image) {
  const cv::Size size = finder.size();
  const double scale = std::min(double(size.width) / image.cols, double(size.height) / image.rows);
  const cv::Rect fitted(0, 0, std::max(1, cvRound(image.cols * scale)),
                        std::max(1, cvRound(image.rows * scale)));
  // the graph's sides are open: of the margin, only what fills a multiple of 64
  auto cut = [](int side, int most) { return std::min(most, (side + 63) / 64 * 64); };
  const cv::Size used(cut(fitted.width, size.width), cut(fitted.height, size.height));
  cv::Mat canvas(used, CV_8UC3, cv::Scalar::all(int(finder.spec["pad_value"])));
  const int how = scale < 1 ? cv::INTER_AREA : cv::INTER_LINEAR;
  cv::resize(image, canvas(fitted), fitted.size(), 0, 0, how);
  auto out = finder.run("images", canvas, {"boxes", "scores"});
  const float* box = out[0].GetTensorData<float>();
  const float* score = out[1].GetTensorData<float>();
  auto inside = [&](double edge, double side) { return float(std::clamp(edge / scale, 0., side)); };
  std::vector<Person> found, kept;
  for (size_t n = 0; n < out[1].GetTensorTypeAndShapeInfo().GetElementCount(); ++n, box += 4) {
    const cv::Vec4f cut(inside(box[0], image.cols), inside(box[1], image.rows),
                        inside(box[2], image.cols), inside(box[3], image.rows));
    const bool sure = score[n] >= float(finder.spec["threshold"]);
    if (sure && cut[2] > cut[0] && cut[3] > cut[1]) found.push_back({cut, score[n]});
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Person& a, const Person& b) { return a.score > b.score; });
  const float limit = finder.spec["nms_iou"];
  for (const Person& one : found) {
    auto hides = [&](const Person& other) { return iou(one.box, other.box) > limit; };
    if (std::none_of(kept.begin(), kept.end(), hides)) kept.push_back(one);
  }
  return kept;
}

// Prints a person as JSON. The box grows to the crop's aspect ratio, then by box_scale; its centre
// maps to the middle of the crop. Decoding and refinement are in the graph.
void pose(Graph& network, const cv::Mat& image, const Person& person, const char* name) {
  const cv::Size size = network.size();
  const cv::Vec4d box = person.box;
  const double width = std::max(box[2] - box[0], (box[3] - box[1]) * size.width / size.height);
  const double scale = size.width / (width * double(network.spec["box_scale"]));
  const double x = size.width / 2.0 - scale * (box[0] + box[2]) / 2;
  const double y = size.height / 2.0 - scale * (box[1] + box[3]) / 2;
  const cv::Matx23d map(scale, 0, x, 0, scale, y);
  cv::Mat crop;
  cv::warpAffine(image, crop, map, size, cv::INTER_LINEAR, cv::BORDER_CONSTANT);
  auto out = network.run("crops", crop, {"keypoints", "confidence"});
  const float* joints = out[0].GetTensorData<float>();
  const float* confidence = out[1].GetTensorData<float>();
  std::cout << "{\"image\": " << std::quoted(name) << ", \"box\": " << person.box
            << ", \"score\": " << person.score;
  for (size_t k = 0; k < network.spec["keypoints"].size(); ++k, joints += 2)
    std::cout << (k ? ", " : ", \"joints\": [")
              << cv::Vec3d((joints[0] - x) / scale, (joints[1] - y) / scale, confidence[k]);
  std::cout << "]}\n";
}

int main(int count, char** words) try {
  if (count < 3) throw std::runtime_error("usage: pose MODELS PHOTO...");
  const std::filesystem::path models(words[1]);
  const Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Graph finder(env, models / "finder-s.onnx", "cfpose.finder");
  Graph network(env, models / "cfpose-s.onnx", "cfpose.spec");
  for (int n = 2; n < count; ++n) {
    const cv::Mat image = cv::imread(words[n]);
    if (image.empty()) throw std::runtime_error(std::string(words[n]) + " cannot be read");
    for (const Person& person : find(finder, image)) pose(network, image, person, words[n]);
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
