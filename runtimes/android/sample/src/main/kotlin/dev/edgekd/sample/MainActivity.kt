package dev.edgekd.sample

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.TextView
import dev.edgekd.BundleError
import dev.edgekd.EdgeModel
import dev.edgekd.closeWith
import dev.edgekd.inBackground
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/** One screen: a text, what the model says to it, and whether this device answers as verified. */
class MainActivity : Activity() {
    private val scope = MainScope()
    private lateinit var answer: TextView
    private lateinit var buttons: List<Button>

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        answer = findViewById(R.id.answer) as TextView
        val text = findViewById(R.id.text) as EditText
        val ask = findViewById(R.id.ask) as Button
        val test = findViewById(R.id.test) as Button
        buttons = listOf(ask, test)
        text.setText(EXAMPLE)
        show {
            val model = open(this).closeWith(scope)
            ask.setOnClickListener { show { model.inBackground { answered(text.text.toString()) } } }
            test.setOnClickListener { show { model.inBackground { selfTest().toString() } } }
            getString(R.string.ready)
        }
    }

    /** The buttons rest until the work is done. */
    private fun show(work: suspend () -> String) {
        scope.launch {
            buttons.forEach { it.isEnabled = false }
            try {
                answer.text = work()
                buttons.forEach { it.isEnabled = true }
            } catch (error: BundleError) {
                answer.text = error.message
            }
        }
    }

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }
}
