@file:JvmName("AnswerMain")

package dev.edgekd

import java.io.File
import kotlin.system.exitProcess

/**
 * `answer BUNDLE-ASSETS`: the self-test as a JSON line, then for each JSON line that is a text, or a question and its
 * context, the answer as a JSON line.
 */
fun main(arguments: Array<String>) {
    val model = try {
        openBundle(FolderFiles(File(arguments.single())))
    } catch (error: BundleError) {
        System.err.println("answer: ${error.message}")
        exitProcess(1)
    }
    model.use {
        println(written(model.selfTest()))
        for (line in System.`in`.bufferedReader().lineSequence()) {
            val asked = Json.parse(line)
            val texts = if (asked.isList) asked.list().map { it.text() } else listOf(asked.text())
            println(written(answer(model, texts)))
        }
    }
}

private fun answer(model: EdgeModel, texts: List<String>): Any = when (model) {
    is EdgeClassifier -> model.classify(texts[0])
    is EdgeTagger -> model.tag(texts[0])
    is EdgeAnswerer -> model.answer(texts[0], texts.getOrElse(1) { "" })
    is EdgeEmbedder -> model.embed(texts[0])
    else -> error("no such model")
}

private fun written(value: Any?): String = when (value) {
    null, is Number, is Boolean -> value.toString()
    is String -> value.map { if (it in ' '..'~' && it !in "\"\\") "$it" else "\\u%04x".format(it.code) }
        .joinToString("", "\"", "\"")
    is FloatArray -> value.joinToString(", ", "[", "]")
    is List<*> -> value.joinToString(", ", "[", "]", transform = ::written)
    is Scored -> written(listOf(value.label, value.score))
    is Span -> written(listOf(value.label, value.start, value.end, value.text, value.score))
    is Answer -> written(listOf(value.text, value.start, value.end, value.score))
    is Report.Row -> written(
        mapOf(
            "text" to value.text,
            "ids_equal" to value.idsEqual,
            "difference" to value.difference,
            "milliseconds" to value.milliseconds,
            "answer" to value.answer,
        ),
    )
    is Report -> written(
        mapOf(
            "passed" to value.passed,
            "texts" to value.texts,
            "largest_difference" to value.largestDifference,
            "bound" to value.bound,
            "milliseconds" to value.milliseconds,
            "runtime" to value.runtime,
            "wrong" to value.wrong,
            "rows" to value.rows,
        ),
    )
    is Map<*, *> -> value.entries.joinToString(", ", "{", "}") { (name, one) -> "${written(name)}: ${written(one)}" }
    else -> error("not to be written: $value")
}
