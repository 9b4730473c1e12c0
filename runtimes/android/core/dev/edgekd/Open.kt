package dev.edgekd

/** A bundle of any task: for tools and tests. An app knows its task, and calls `EdgeClassifier.load` and so on. */
fun openBundle(files: BundleFiles, threads: Int = 1): EdgeModel = when (val task = Settings.read(files).task) {
    EdgeClassifier.TASK -> EdgeClassifier.load(files, threads)
    EdgeTagger.TASK -> EdgeTagger.load(files, threads)
    EdgeAnswerer.TASK -> EdgeAnswerer.load(files, threads)
    EdgeEmbedder.TASK -> EdgeEmbedder.load(files, threads)
    else -> throw BundleError("${files.place}: is for $task, which this library does not know")
}
