package dev.edgekd.sample

import android.content.Context
import dev.edgekd.EdgeAnswerer
import dev.edgekd.load

/** The question stands on the first line. */
internal const val EXAMPLE = "Who wrote it?\nThe report was written by Ada and read by Grace."

internal suspend fun open(context: Context) = EdgeAnswerer.load(context)

internal fun EdgeAnswerer.answered(text: String): String {
    val found = answer(text.substringBefore('\n'), text.substringAfter('\n', ""))
    return if (found.text.isEmpty()) "no answer (${found.score})" else "${found.text} (${found.score})"
}
