import android.content.Context
import dev.edgekd.AssetFiles
import dev.edgekd.BundleError
import dev.edgekd.EdgeClassifier
import dev.edgekd.closeWith
import dev.edgekd.inBackground
import dev.edgekd.load
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancel
import kotlinx.coroutines.runBlocking

/** An app's use of the library: ASSETS FILES COMPRESSED, and JSON texts in. */
fun main(arguments: Array<String>) = runBlocking<Unit> {
    val context = Context(File(arguments[0]), File(arguments[1]), arguments[2] == "yes")
    val scope = CoroutineScope(Dispatchers.Default + Job())
    val model = EdgeClassifier.load(context).closeWith(scope)
    for (line in System.`in`.bufferedReader().lineSequence()) {
        val best = model.inBackground { classify(unescaped(line), topK = 1) }.single()
        println("""{"label": "${best.label}", "score": ${best.score}}""")
    }
    scope.cancel()
    while (true) {
        try {
            model.classify("")
            Thread.sleep(1)
        } catch (error: BundleError) {
            println("""{"closed": "${error.message}"}""")
            break
        }
    }
    val files = AssetFiles(context)
    check(files.mapped("model/model.onnx").remaining() == files.bytes("model/model.onnx").size)
    check(files.file("model/model.onnx") == files.file("model/model.onnx"))
    println("""{"copied": ${files.file("model/model.onnx").length()}}""")
    try {
        AssetFiles(Context(File("nowhere"), File("nowhere"), false))
    } catch (error: BundleError) {
        println("""{"unknown": "${error.message!!.substringBefore(" in ")}"}""")
    }
}

/** Python writes what is not ASCII as escapes. */
private fun unescaped(line: String) =
    Regex("""\\u(....)""").replace(line.trim('"')) { "${it.groupValues[1].toInt(16).toChar()}" }
