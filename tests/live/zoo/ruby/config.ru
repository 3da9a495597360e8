# A Rack application, for Puma.
application = lambda do |env|
  _, page, argument = env["PATH_INFO"].split("/")
  text = { "content-type" => "text/plain" }
  case page
  when "items" then [200, text, [%({"item":"#{argument}"}\n)]]
  when "fail" then [500, text, ["failed\n"]]
  when "echo" then [200, text, [env["rack.input"].read]]
  when "sleep"
    sleep(argument.to_i / 1000.0)
    [200, text, ["slept\n"]]
  when "big" then [200, text, ["x" * argument.to_i]]
  when "stream"
    pieces = Enumerator.new do |out|
      5.times do |piece|
        out << "piece #{piece}\n"
        sleep 0.001
      end
    end
    [200, text, pieces]
  else [404, text, ["no such page\n"]]
  end
end
run application
